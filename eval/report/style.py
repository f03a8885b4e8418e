"""Style sheet and script of the report; nothing in them is fetched from anywhere."""

STYLE = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#1b2230;--soft:#5b6678;--line:#e1e5ec;--accent:#2f6fde;
--teacher:#2f6fde;--teacher-1:#0b8a8f;--teacher-2:#6a4fc4;--teacher-3:#4d6d1f;--student:#d9603b;--student-1:#b23a7c;--student-2:#a27c0d;
--student-3:#a3262a;
--level:#5d8a66;--best:#e8f0fe;--note:#fff7e6;--note-line:#e8b44a}
@media(prefers-color-scheme:dark){:root{--bg:#12151b;--card:#1a1f28;--ink:#e6eaf2;--soft:#98a3b6;--line:#2b3240;
--accent:#7aa7ff;--teacher:#7aa7ff;--teacher-1:#52c7cb;--teacher-2:#b6a1ff;--teacher-3:#a9cf6d;--student:#ff9a73;--student-1:#f58ac2;
--student-2:#e2c04d;--student-3:#ff7b80;--level:#8fc49a;--best:#22304d;--note:#2a2415;--note-line:#b98a2c}}
*{box-sizing:border-box}html{scroll-behavior:smooth}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main,header>div{max-width:1180px;margin:0 auto;padding:0 20px}
header{background:var(--card);border-bottom:1px solid var(--line);padding:34px 0 22px}
h1{font-size:1.75rem;line-height:1.25;margin:0 0 8px;letter-spacing:-.01em}
h2{font-size:1.35rem;margin:44px 0 14px;letter-spacing:-.01em}h3{font-size:1.02rem;margin:30px 0 10px}
p{margin:0 0 12px}.lead{color:var(--soft);max-width:76ch}.soft{color:var(--soft);font-size:.9rem}
nav{display:flex;flex-wrap:wrap;gap:8px;margin-top:16px}
nav a{padding:5px 13px;border:1px solid var(--line);border-radius:99px;color:var(--ink);text-decoration:none;
font-size:.9rem}
nav a:hover{border-color:var(--accent);color:var(--accent)}
.note{background:var(--note);border-left:4px solid var(--note-line);border-radius:6px;padding:12px 16px;margin:22px 0}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(250px,1fr));gap:14px}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:16px 18px}
.card.student{border-top:3px solid var(--student)}.card.teacher{border-top:3px solid var(--teacher)}
.card h4{margin:0 0 10px;font-size:.95rem}.card dl{display:grid;grid-template-columns:1fr auto;gap:3px 12px;margin:0}
.card dt{color:var(--soft);font-size:.9rem}
.card dd{margin:0;text-align:right;font-variant-numeric:tabular-nums;font-weight:600}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:12px}
table{border-collapse:collapse;width:100%;font-size:.92rem;font-variant-numeric:tabular-nums}
th,td{padding:8px 12px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
th{font-weight:600;color:var(--soft);font-size:.83rem;vertical-align:bottom;white-space:normal}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:var(--card);
white-space:normal;min-width:150px;max-width:300px;overflow-wrap:break-word}
tr:last-child td{border-bottom:0}td.long{white-space:normal;min-width:260px;text-align:left}
tr.muted td{color:var(--soft)}tr.first td{border-top:2px solid var(--line)}
td.best{background:var(--best);font-weight:700}td .spread{color:var(--soft);font-weight:400;font-size:.85em}
.dot{display:inline-block;width:9px;height:9px;border-radius:50%;margin-right:8px;background:var(--level)}
.dot.teacher{background:var(--teacher)}.dot.student{background:var(--student)}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(310px,100%),1fr));gap:14px;margin-bottom:14px}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:12px;padding:12px 14px;min-width:0}
figcaption{font-size:.9rem;font-weight:600;margin-bottom:4px}
figcaption span{font-weight:400;color:var(--soft);font-size:.82rem;display:block}
.chart{width:100%;height:auto;display:block}.grid{stroke:var(--line);stroke-width:1}
.chart text{fill:var(--soft);font-size:13px}.level{stroke:var(--level);stroke-width:1.5}
.chart .level-label{fill:var(--level);font-size:12px;paint-order:stroke;stroke:var(--card);stroke-width:4px}
.series polyline{fill:none;stroke:var(--hue);stroke-width:2.2;stroke-linejoin:round}
.series .bar{stroke:var(--hue);stroke-width:1.5;opacity:.75}
.point{fill:var(--hue);stroke:var(--card);stroke-width:1}
.teacher{--hue:var(--teacher)}.teacher.v1{--hue:var(--teacher-1)}.teacher.v2{--hue:var(--teacher-2)}
.teacher.v3{--hue:var(--teacher-3)}
.student{--hue:var(--student)}.student.v1{--hue:var(--student-1)}.student.v2{--hue:var(--student-2)}
.student.v3{--hue:var(--student-3)}
.sample{width:40px;height:16px;vertical-align:-3px;margin-right:7px}
details{margin:0 0 10px}details[open]{margin-bottom:18px}
summary{cursor:pointer;padding:8px 0;font-size:.93rem;overflow-wrap:anywhere}summary:hover{color:var(--accent)}
details h4{margin:18px 0 6px;font-size:.93rem}ul.soft{padding-left:20px;overflow-wrap:anywhere}
.scroll+details{margin-top:12px}
.legend{display:flex;flex-wrap:wrap;gap:6px 18px;font-size:.88rem;color:var(--soft);margin:0 0 10px}
.reading{display:grid;grid-template-columns:auto 1fr;gap:6px 16px;font-size:.92rem;margin:0}
.reading dt{font-weight:600}.reading dd{margin:0;color:var(--soft)}
.example{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:16px 18px;margin-bottom:14px}
.example h4{margin:0 0 12px;font-size:1rem;font-weight:600}
.example h4 span{color:var(--soft);font-weight:400;font-size:.85rem}
.players{display:grid;grid-template-columns:repeat(auto-fit,minmax(220px,1fr));gap:14px}
.player b{display:block;font-size:.88rem;margin-bottom:5px}
.player video{width:100%;aspect-ratio:4/3;background:#000;border-radius:8px;display:block;object-fit:contain}
.player audio{width:100%;height:38px;display:block}
.spec{position:relative;margin-top:8px;border-radius:6px;overflow:hidden;cursor:pointer;background:#000}
.spec img{width:100%;height:92px;display:block}
.spec i{position:absolute;top:0;bottom:0;left:0;width:2px;background:#fff;opacity:0}
.facts{display:grid;grid-template-columns:auto 1fr;gap:4px 18px;font-size:.9rem;margin:0}
.facts dt{color:var(--soft)}.facts dd{margin:0;overflow-wrap:anywhere}
code,pre{font:0.86em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
pre{background:var(--bg);border:1px solid var(--line);border-radius:8px;padding:10px 12px;margin:0 0 8px;
white-space:pre-wrap;
overflow-wrap:anywhere}
footer{color:var(--soft);font-size:.85rem;padding:30px 0 40px}
@media(max-width:640px){.reading,.facts{grid-template-columns:1fr}.reading dd{margin-bottom:8px}th,td{padding:7px 10px}
td:first-child,th:first-child{white-space:normal;min-width:96px;max-width:40vw}}
"""

SCRIPT = """
const all=[...document.querySelectorAll('video,audio')];
for(const media of all){
  const spec=media.parentElement.querySelector('.spec'),line=spec&&spec.querySelector('i');
  const draw=()=>{if(line&&media.duration){line.style.opacity=.9;
line.style.left=100*media.currentTime/media.duration+'%'}
    if(!media.paused)requestAnimationFrame(draw)};
  media.addEventListener('play',()=>{for(const other of all)if(other!==media)other.pause();draw()});
  media.addEventListener('seeked',draw);
  if(spec)spec.addEventListener('click',event=>{const box=spec.getBoundingClientRect();
    if(media.duration)media.currentTime=media.duration*(event.clientX-box.left)/box.width;media.play()});
}
"""
