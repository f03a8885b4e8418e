"""The web page of the sampler: its elements, and how errors are shown. Needs gradio, an optional extra."""

import re
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr
from gradio.routes import ORJSONResponse

from scripts.app import html
from scripts.app.guard import Guard, GuardedApp, Hosts, Visitors
from scripts.app.studio import GRIDS, MAX_SEED, Check, ModelSetting, SoundRequest, Studio
from teacher.media import VIDEO_SUFFIXES
from teacher.network.sequence import MIN_DURATION_S

FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO = ("ui-monospace", "Consolas", "monospace")
SUFFIXES = sorted({*VIDEO_SUFFIXES, ".webm", ".avi", ".ts", ".mpg", ".wmv"})
STEPS, GUIDANCE = 50, 8.0
"""Ends of the sliders."""
QUEUE = 16
"""Clicks that may wait; further ones get the error that the queue is full."""


def address(path: Path) -> str:
    """The address under which the server delivers a file of the workspace."""
    return f"/gradio_api/file={quote(str(path))}"


def one_line(call: Callable[..., str], root: Path, visitors: Visitors) -> Callable[..., str]:
    """A callback that ends when nobody waits for its result any longer, and whose errors become one line on the page.

    The line is the message of an error that is meant for users, without folders of the server. Other errors are only
    reported as internal; their traceback goes to the server's standard error.
    """
    folders = re.compile(re.escape(str(root)) + r"/(?:[^/\s]+/)*")

    def guarded(request: gr.Request, *given: Any) -> str:
        try:
            with visitors.working(visitor(request)) as check:
                return call(check, *given)
        except (ValueError, OSError) as error:
            return html.alert(folders.sub("", " ".join(str(error).split())))
        except Exception:
            traceback.print_exc()
            return html.alert("an internal error occurred; its traceback is in the server's log")

    return guarded


def visitor(request: gr.Request) -> str:
    """Identifies who sent a request: the page open in one tab, or one call of the functions behind it."""
    return str(getattr(request, "session_hash", None) or "")[:100]


def uploads_only(component: gr.File) -> gr.File:
    """The component restricted to uploaded files; given an address instead of a file, gradio would download it."""
    move = component.async_move_resource_to_block_cache

    async def local(path: Any) -> Any:
        if re.match(r"[a-z][a-z0-9+.-]*:", str(path), re.IGNORECASE):
            raise gr.Error("send the video itself; addresses are not fetched", print_exception=False)
        return await move(path)

    object.__setattr__(component, "async_move_resource_to_block_cache", local)  # comes before the class's method
    return component


def actions(studio: Studio, visitors: Visitors) -> dict[str, Callable[..., str]]:
    """The callbacks of the page by name, which map a request and the values of the form to HTML."""
    names = [model.name for model in studio.models]

    def ask(video: object, prompt: Any, negative: Any, duration_s: Any) -> SoundRequest:
        path = studio.workspace.upload(video)
        studio.workspace.sweep(keep=path)
        return SoundRequest(video=path, prompt=prompt, negative_prompt=negative, duration_s=duration_s)

    def look(check: Check, video: object) -> str:
        path = studio.workspace.upload(video)
        studio.workspace.sweep(keep=path)
        return "" if path is None else html.preview(path, studio.check_video(path), address)

    def make(check: Check, video: object, prompt: Any, negative: Any, duration_s: Any, seed: Any, *numbers: Any) -> str:
        wanted = ask(video, prompt, negative, duration_s)
        pairs = zip(names, numbers[::2], numbers[1::2], strict=True)
        settings = [ModelSetting(model=name, steps=steps, guidance=guidance) for name, steps, guidance in pairs]
        return html.comparison(studio.compare(wanted, settings, seed, check), address)

    def chosen(model: Any, numbers: Sequence[Any]) -> ModelSetting:
        if model not in names:
            raise ValueError(f"the model must be one of {', '.join(names)}")
        k = 2 * names.index(model)
        return ModelSetting(model=model, steps=numbers[k], guidance=numbers[k + 1])

    def grid(
        check: Check, video: object, prompt: Any, negative: Any, duration_s: Any, seed: Any, model: Any, count: Any,
        *numbers: Any,
    ) -> str:  # fmt: skip
        wanted = ask(video, prompt, negative, duration_s)
        return html.grid(studio.grid(wanted, chosen(model, numbers), seed, count, check), address)

    def budget(
        check: Check, video: object, prompt: Any, negative: Any, duration_s: Any, model: Any, *numbers: Any
    ) -> str:
        wanted = ask(video, prompt, negative, duration_s)
        return html.budget(studio.budget(wanted, chosen(model, numbers), check))

    root = studio.workspace.root
    return {call.__name__: one_line(call, root, visitors) for call in (look, make, grid, budget)}


def build(studio: Studio, visitors: Visitors, *, starts: dict[str, tuple[int, float]]) -> gr.Blocks:
    """Build the page. starts: initial steps and guidance of every model's sliders."""
    do, names = actions(studio, visitors), [model.name for model in studio.models]
    window_s = studio.models[0].pipeline.window_s
    with gr.Blocks(title="Sound from video and words", analytics_enabled=False, delete_cache=(600, 7200)) as page:
        gr.HTML(html.heading({m.name: m.pipeline.licence for m in studio.models}, studio.limits), padding=False)
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=300):
                video = uploads_only(gr.File(label="Video", file_types=SUFFIXES, type="filepath", height=130))
                shown = gr.HTML(padding=False)
                prompt = gr.Textbox(label="Prompt", placeholder="a glass ball bounces", max_lines=3)
                negative = gr.Textbox(label="Negative prompt (needs guidance)", placeholder="music", max_lines=2)
                longest = max(studio.limits.seconds, MIN_DURATION_S)
                duration = gr.Slider(
                    MIN_DURATION_S, longest, min(window_s, longest), step=0.01, label="Seconds, without a video"
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
                stop = gr.Button("Stop", elem_id="stop", size="sm")
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

        def stopped(request: gr.Request) -> None:
            if not visitors.stop(visitor(request)):
                gr.Info("nothing is being made for you", duration=3)

        # One queue for everything that decodes or computes; a second visitor waits for the first.
        one: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "work"}
        video.change(do["look"], [video], shown, api_name="look", **one)
        go.click(do["make"], [*scene, seed, *numbers], made, api_name="make", scroll_to_output=True, **one)
        more.click(
            do["grid"], [*scene, seed, which, count, *numbers], grid, api_name="grid", scroll_to_output=True, **one
        )
        measure.click(do["budget"], [*scene, whose, *numbers], budget, api_name="budget", scroll_to_output=True, **one)
        stop.click(stopped, queue=False, api_name="stop")
    page.queue(max_size=QUEUE, default_concurrency_limit=1)
    return page


def launch_options(
    studio: Studio, visitors: Visitors, hosts: Hosts, *, port: int, max_megabytes: int
) -> dict[str, Any]:
    """Arguments of `gradio.Blocks.launch`, under which nothing is loaded from another host.

    `allowed_paths` has the results but not the uploads, which gradio then delivers as downloads only, so that an
    uploaded HTML page does not run as one of this host.
    """
    app = GuardedApp(docs_url=None, redoc_url=None, openapi_url=None, default_response_class=ORJSONResponse)
    app.guard = Guard(
        super(GuardedApp, app).__call__,
        hosts=hosts,
        visitors=visitors,
        workspace=studio.workspace,
        max_bytes=max_megabytes * 2**20,
    )
    return {
        "server_name": hosts.host,
        "server_port": port,
        "share": hosts.share,
        "allowed_paths": [str(studio.workspace.results)],
        "max_file_size": f"{max_megabytes}mb",
        "_app": app,
        "theme": gr.themes.Default(font=FONT, font_mono=MONO),
        "css": html.STYLE,
        "footer_links": [],
        "ssr_mode": False,
        "enable_monitoring": False,
        "mcp_server": False,
        "show_error": False,
        "quiet": True,
    }
