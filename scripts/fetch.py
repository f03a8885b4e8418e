"""Download official weights: `mf-fetch small_16k --weights-dir weights`, `mf-fetch --list`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from scripts.errors import one_line_errors
from teacher.weights.cards import CARDS, NETWORKS, Card, bundle, card
from teacher.weights.fetch import Fetcher


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """Download official files with resume and digest check. Nothing else in this project downloads anything."""

    variants: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[VARIANT ...]")] = ()
    """Published variants to download, each with its network, VAE, vocoder, Synchformer and CLIP."""
    component: tuple[str, ...] = ()
    """Single components, such as vae_16k."""
    weights_dir: Path = Path("weights")
    """Folder for the files."""
    base_url: str | None = None
    """A mirror that holds the files under the names that --list prints; by default the publishers' addresses."""
    list: bool = False
    """Print the cards (size, digest, licence, address) and download nothing."""


class _Bar:
    """A progress bar for one file, made when its size is known."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._bar: tqdm | None = None

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = tqdm(total=total, desc=self._name, unit="B", unit_scale=True, unit_divisor=1024)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def run(arguments: Fetch, *, report: Callable[[str], None] = print) -> list[Path]:
    """Download the requested files; returns their paths."""
    names = [component for variant in arguments.variants for component in bundle(variant)]
    cards = [card(component) for component in dict.fromkeys([*names, *arguments.component])]
    if arguments.list:
        for known in cards or CARDS:
            report(describe(known))
        return []
    if not cards:
        raise ValueError(f"name a variant ({', '.join(NETWORKS)}) or a --component; --list shows all files")
    fetcher = Fetcher(folder=arguments.weights_dir, base_url=arguments.base_url)
    report("licences of the files below; using them means accepting these:")
    for chosen in cards:
        report(f"  {chosen.file}: {chosen.licence}")
    files = []
    for chosen in cards:
        bar = _Bar(chosen.file)
        try:
            files.append(fetcher(chosen, progress=bar))
        finally:
            bar.close()
        report(f"{files[-1]}: {chosen.check_text}")
    if arguments.variants:
        report(f"next: mf-convert {arguments.variants[0]} --weights-dir {arguments.weights_dir}")
    return files


def describe(known: Card) -> str:
    """One card as a few lines."""
    return (
        f"{known.component}: {known.file}, {known.size_text}, {known.check_text}\n"
        f"    licence: {known.licence}\n    from {known.project}: {known.url}"
    )


@one_line_errors
def cli() -> None:
    """Entry point of `mf-fetch`."""
    run(tyro.cli(Fetch))


if __name__ == "__main__":
    cli()
