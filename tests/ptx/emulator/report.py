"""The findings and counters of a run."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Finding:
    """One kind of misbehaviour at one line; the thread and the address are those of its first occurrence."""

    kind: str
    line: int  # in the PTX text, 0: the launch as a whole
    message: str
    kernel: str
    instruction: str = ""
    source: str = ""  # file and line of the source, where the PTX has debug information
    cta: tuple[int, int, int] = (0, 0, 0)
    warp: int = 0
    lane: int = 0
    count: int = 1

    def __str__(self) -> str:
        place = f"line {self.line}" + (f" ({self.source})" if self.source else "")
        return (
            f"{self.kind} in {self.kernel}, {place}: {self.message} "
            f"[CTA {self.cta}, warp {self.warp}, lane {self.lane}, "
            f"{self.count} times] {self.instruction}"
        )


@dataclass
class Report:
    """The outcome of `run`."""

    kernel: str
    findings: list[Finding] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)
    executions: dict[int, int] = field(default_factory=dict)  # PTX line -> times a warp executed it with any lane

    @property
    def clean(self) -> bool:
        return not self.findings

    @property
    def kinds(self) -> set[str]:
        return {finding.kind for finding in self.findings}

    def assert_clean(self) -> None:
        """Fails with the findings, one a line."""
        if self.findings:
            raise AssertionError(f"{self.kernel}: {len(self.findings)} findings\n" + "\n".join(map(str, self.findings)))
