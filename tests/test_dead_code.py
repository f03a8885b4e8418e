"""No function, class, method or import of the packages is without a use in them; a use by tests alone is none."""

from pathlib import Path

from vulture import Vulture

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("meanflow", "teacher", "distill", "eval", "scripts", "benchmarks")
KINDS = {"function", "class", "method", "property", "import"}
"""Fields and attributes are left out: configurations and state dicts are read by name."""
ALLOWED = {
    "__getattr__": "front doors load what they export when it is asked for",
    "__dir__": "the same",
    "macro": "page.html.j2 draws a block by the macro of this name",
    "Axes": "named in an annotation in quotes",
    "Panns": "eval/features/published_models.py names adapters as texts, so that none is loaded in vain",
    "Passt": "the same",
    "Vggish": "the same",
    "kl_sigmoid_positive_part": "published tables hold this number; recorded reference values are of it",
    "save_pretrained": "README: a pipeline as a folder to give away",
    "identity_residual": "the identity u + (t - r) du/dt - v of a field of one's own; the tests' own oracle",
    "log_density": "closed forms of the mixture, for whoever tests a method against it",
    "responsibilities": "the same",
}
"""What is used in a way that the scan does not see, or by users alone, and why it is there."""


def test_everything_has_a_use():
    scan = Vulture(ignore_decorators=["@list_format"])
    scan.scavenge([str(ROOT / name) for name in PACKAGES])
    found = {
        f"{Path(item.filename).relative_to(ROOT)}:{item.first_lineno} {item.name}"
        for item in scan.get_unused_code(min_confidence=60)
        if item.typ in KINDS and item.name not in ALLOWED
    }
    assert sorted(found) == []
