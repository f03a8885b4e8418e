"""Reports of a comparison, made from its rows alone: no network is loaded, and no torch.

results.py reads rows.jsonl and what lies beside it; settings.py averages the rows over seeds. tables.py,
differences.py, charts.py, budgets.py and cross_check.py turn settings into blocks (blocks.py), which page.py puts
together and renders as report.html and results.md. paper.py and figures.py make tables and figures for a paper,
trainings.py the tables that documents quote.
"""
