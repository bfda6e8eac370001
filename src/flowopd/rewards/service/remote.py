"""`remote`: a scorer that is somewhere else, asked over HTTP."""

import threading
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flowopd.errors import FlowOPDError
from flowopd.rewards.scorer import (
    About,
    ChecksRecords,
    Finding,
    MetricInfo,
    Scores,
    ShowsItself,
    UnavailableError,
)
from flowopd.rewards.service.pool import Pool
from flowopd.rewards.service.remote_settings import RemoteSettings, ServerSettings
from flowopd.rewards.service.wire import AboutReply
from flowopd.tasks.prompts import PromptRecord

Pictures = NDArray[np.uint8]


class ServedScorer:
    """A scorer whose numbers come from servers; what they serve is declared by those below."""

    name: str
    version: int
    metrics: tuple[MetricInfo, ...]
    tasks: frozenset[str] | None = None
    """Those that it reads here; of what it is declared to read, a configuration may name a part."""
    declared_tasks: frozenset[str] | None = None
    grouped: bool = False
    about: About = About()

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self._pool: Pool | None = None
        self._opening = threading.Lock()

    def load(self) -> None:
        """Ask the servers whether they are there, and whether they serve what is declared."""
        self._ready()

    def score(self, images: Pictures, records: Sequence[PromptRecord]) -> list[Scores]:
        end = time.monotonic() + self.call_seconds
        return self._ready().score(images, records, end)

    def self_check(self) -> list[Finding]:
        """What the scorer finds where it is."""
        return self._ready().check()

    def transient(self, error: Exception) -> Literal[False]:
        """All that was worth another try has had it."""
        return False

    def close(self) -> None:
        """Calls that are under way in other threads end with an error."""
        with self._opening:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    @property
    def call_seconds(self) -> float:
        """After which a call comes back by itself, with what there is."""
        return self.settings.call_seconds

    def settings_served(self) -> dict[str, Any]:
        """The settings, of those that change a number, that the servers should have."""
        return {}

    def _ready(self) -> Pool:
        with self._opening:
            if self._pool is None or not self._pool.alive:
                self._pool = self._opened()
            return self._pool

    def _opened(self) -> Pool:
        if find_spec("httpx") is None:
            raise UnavailableError(
                f"The scorer {self.name!r} asks servers, for which it needs the package "
                "'httpx': pip install 'flowopd[service]'."
            )
        try:
            return Pool(self, self.settings, self._agrees)
        except FlowOPDError as error:
            raise UnavailableError(str(error)) from None

    def _agrees(self, url: str, about: AboutReply) -> None:
        """Refuse a server that serves something else."""
        for what, here, there in self._compared(about):
            if here != there:
                raise UnavailableError(
                    f"The server {url} does not serve what is declared for {self.name!r}: its "
                    f"{what} is {there!r}, and should be {here!r}."
                )

    def _compared(self, about: AboutReply) -> Iterator[tuple[str, Any, Any]]:
        tasks = None if about.tasks is None else frozenset(about.tasks)
        yield "name", self.name, about.name
        yield "version", self.version, about.version
        yield "metrics", self.metrics, about.metric_infos
        yield "tasks", self.declared_tasks, tasks
        yield "grouped", self.grouped, about.grouped
        yield "settings", self.settings_served(), about.identity


class Remote(ServedScorer):
    """A scorer of this installation, or one that is declared, asked over HTTP."""

    Settings = RemoteSettings
    settings: RemoteSettings

    def __init__(self, settings: RemoteSettings) -> None:
        super().__init__(settings)
        self._local: Any = None if settings.scorer is None else settings.scorer.load()
        declared: Any = settings.declares or self._local
        self.name, self.version = declared.name, declared.version
        self.metrics = tuple(
            one if isinstance(one, MetricInfo) else MetricInfo(**one.model_dump())
            for one in declared.metrics
        )
        self.declared_tasks = None if declared.tasks is None else frozenset(declared.tasks)
        self.tasks = self.declared_tasks
        self.grouped = declared.grouped
        self.about = getattr(declared, "about", About())

    def check(self, record: PromptRecord) -> None:
        if isinstance(self._local, ChecksRecords):
            self._local.check(record)

    def example(self) -> tuple[Pictures, PromptRecord]:
        if isinstance(self._local, ShowsItself):
            return self._local.example()
        task = min(self.tasks) if self.tasks else ""
        return np.full((512, 512, 3), 128, np.uint8), PromptRecord("a grey wall", task)

    def settings_served(self) -> dict[str, Any]:
        if self.settings.declares is not None:
            return self.settings.declares.settings
        assert self.settings.scorer is not None
        return self.settings.scorer.identity()
