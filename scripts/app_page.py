"""The web page of the sampler: what is on it, and what a visitor sees of errors. Needs gradio, an optional extra."""

import functools
import re
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scripts import app_html
from scripts.app_studio import GRIDS, MAX_SEED, Ask, Setting, Studio
from teacher.data.media import VIDEO_SUFFIXES
from teacher.sequence import MIN_DURATION_S

FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO = ("ui-monospace", "Consolas", "monospace")
SUFFIXES = sorted({*VIDEO_SUFFIXES, ".webm", ".avi", ".ts", ".mpg", ".wmv"})
STEPS, GUIDANCE = 50, 8.0
"""Ends of the sliders."""
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; connect-src 'self'; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'"
)
"""What a browser may load for this page: nothing from another host."""


SAFE = [(b"referrer-policy", b"no-referrer"), (b"x-content-type-options", b"nosniff")]


class OwnHostOnly:
    """Adds POLICY to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(b"content-security-policy", POLICY.encode()), *SAFE]
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        await self._app(scope, receive, answer)


def address(path: Path) -> str:
    """Where the server shows a file of the workspace."""
    return f"/gradio_api/file={quote(str(path))}"


def one_line(call: Callable[..., str], root: Path) -> Callable[..., str]:
    """A callback whose errors become one line on the page: the message where it is meant for users, without folders of
    the server; else only that something failed, and the traceback goes to the server's standard error."""
    folders = re.compile(re.escape(str(root)) + r"/(?:[^/\s]+/)*")

    @functools.wraps(call)
    def guarded(*given: Any) -> str:
        try:
            return call(*given)
        except (ValueError, OSError) as error:
            return app_html.alert(folders.sub("", " ".join(str(error).split())))
        except Exception:
            traceback.print_exc()
            return app_html.alert("this did not work, through no fault of yours; the server's log says why")

    return guarded


def uploads_only(component: gr.File) -> gr.File:
    """The same component, which takes what was uploaded and fetches nothing: given an address in the place of a file,
    gradio would have the server download it."""
    move = component.async_move_resource_to_block_cache

    async def local(path: Any) -> Any:
        if re.match(r"[a-z][a-z0-9+.-]*:", str(path), re.IGNORECASE):
            raise gr.Error("send the video itself; addresses are not fetched", print_exception=False)
        return await move(path)

    object.__setattr__(component, "async_move_resource_to_block_cache", local)  # comes before the class's method
    return component


def actions(studio: Studio) -> dict[str, Callable[..., str]]:
    """What events call: plain functions from the values of the form to HTML."""
    names = [model.name for model in studio.models]

    def ask(video: object, prompt: Any, negative: Any, duration_s: Any) -> Ask:
        path = studio.workspace.upload(video)
        studio.workspace.sweep(keep=path)
        return Ask(video=path, prompt=prompt, negative_prompt=negative, duration_s=duration_s)

    def look(video: object) -> str:
        path = studio.workspace.upload(video)
        studio.workspace.sweep(keep=path)
        return "" if path is None else app_html.preview(path, studio.look(path), address)

    def make(video: object, prompt: Any, negative: Any, duration_s: Any, seed: Any, *numbers: Any) -> str:
        wanted = ask(video, prompt, negative, duration_s)
        pairs = zip(names, numbers[::2], numbers[1::2], strict=True)
        settings = [Setting(model=name, steps=steps, guidance=guidance) for name, steps, guidance in pairs]
        return app_html.comparison(studio.compare(wanted, settings, seed), address)

    def chosen(model: Any, numbers: Sequence[Any]) -> Setting:
        if model not in names:
            raise ValueError(f"the model must be one of {', '.join(names)}")
        k = 2 * names.index(model)
        return Setting(model=model, steps=numbers[k], guidance=numbers[k + 1])

    def grid(
        video: object, prompt: Any, negative: Any, duration_s: Any, seed: Any, model: Any, count: Any, *numbers: Any
    ) -> str:
        wanted = ask(video, prompt, negative, duration_s)
        return app_html.grid(studio.grid(wanted, chosen(model, numbers), seed, count), address)

    def budget(video: object, prompt: Any, negative: Any, duration_s: Any, model: Any, *numbers: Any) -> str:
        return app_html.budget(studio.budget(ask(video, prompt, negative, duration_s), chosen(model, numbers)))

    return {call.__name__: one_line(call, studio.workspace.root) for call in (look, make, grid, budget)}


def build(studio: Studio, *, starts: dict[str, tuple[int, float]]) -> gr.Blocks:
    """The page. `starts`: steps and guidance that the sliders of every model begin with."""
    do, names = actions(studio), [model.name for model in studio.models]
    window_s = studio.models[0].pipeline.window_s
    with gr.Blocks(title="Sound from video and words", analytics_enabled=False, delete_cache=(600, 7200)) as page:
        gr.HTML(app_html.heading({model.name: model.pipeline.licence for model in studio.models}), padding=False)
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=300):
                video = uploads_only(gr.File(label="Video", file_types=SUFFIXES, type="filepath", height=130))
                shown = gr.HTML(padding=False)
                prompt = gr.Textbox(label="What is to be heard", placeholder="a glass ball bounces", max_lines=3)
                negative = gr.Textbox(label="What is not (acts through guidance)", placeholder="music", max_lines=2)
                longest = max(studio.max_seconds, MIN_DURATION_S)
                duration = gr.Slider(
                    MIN_DURATION_S, longest, min(window_s, longest), step=0.01, label="Seconds, for words alone"
                )
                numbers = []
                for name in names:
                    steps, guidance = starts[name]
                    with gr.Group():
                        numbers += [
                            gr.Slider(1, STEPS, steps, step=1, label=f"Steps of the {name}"),
                            gr.Slider(0.0, GUIDANCE, guidance, step=0.1, label=f"Guidance of the {name}; 1 is off"),
                        ]
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED)
                go = gr.Button("Make sound", variant="primary", elem_id="make")
            with gr.Column(scale=2, min_width=300), gr.Tabs():
                with gr.Tab("Sound"):
                    made = gr.HTML('<p class="mf-soft">Nothing made yet.</p>', elem_id="made", min_height=200)
                with gr.Tab("Seeds"):
                    with gr.Row():
                        which = gr.Radio(names, value=names[0], label="Model", min_width=140)
                        count = gr.Radio(list(GRIDS), value=GRIDS[0], label="Sounds", min_width=120)
                        more = gr.Button("Make the grid", variant="primary", elem_id="more", min_width=140)
                    grid = gr.HTML(elem_id="grid", min_height=120)
                with gr.Tab("Budget"):
                    with gr.Row():
                        whose = gr.Radio(names, value=names[0], label="Model", min_width=140)
                        measure = gr.Button("Measure every stage", elem_id="measure", min_width=140)
                    budget = gr.HTML(elem_id="budget", min_height=120)
        scene = [video, prompt, negative, duration]
        # One queue for everything that decodes or computes; a second visitor waits for the first.
        one: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "work"}
        video.change(do["look"], [video], shown, api_name="look", **one)
        go.click(do["make"], [*scene, seed, *numbers], made, api_name="make", scroll_to_output=True, **one)
        more.click(
            do["grid"], [*scene, seed, which, count, *numbers], grid, api_name="grid", scroll_to_output=True, **one
        )
        measure.click(do["budget"], [*scene, whose, *numbers], budget, api_name="budget", scroll_to_output=True, **one)
    page.queue(max_size=16, default_concurrency_limit=1)
    return page


def launch_options(studio: Studio, *, host: str, port: int, share: bool, max_megabytes: int) -> dict[str, Any]:
    """Arguments of `gradio.Blocks.launch`: nothing comes from another host, and only what was made here is shown as it
    is. Uploads are not among `allowed_paths`: gradio gives them out as downloads, so that a page somebody uploads is
    not run as one of this host."""
    return {
        "server_name": host,
        "server_port": port,
        "share": share,
        "allowed_paths": [str(studio.workspace.results)],
        "max_file_size": f"{max_megabytes}mb",
        "app_kwargs": {"middleware": [Middleware(OwnHostOnly)], "docs_url": None, "redoc_url": None},
        "theme": gr.themes.Default(font=FONT, font_mono=MONO),
        "css": app_html.STYLE,
        "footer_links": [],
        "ssr_mode": False,
        "enable_monitoring": False,
        "mcp_server": False,
        "show_error": False,
        "quiet": True,
    }
