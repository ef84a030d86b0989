"""How a model runs: as it is or deployed, and in which runtime."""

from typing import NamedTuple

from .runtimes import COMPILED, RUNTIMES

_DEPLOY = 'deploy'
_BETWEEN = '->'


class Mode(NamedTuple):
    """How one model runs.

    As text: the runtime, with `deploy+` before it if the model is deployed; `deploy` alone is the
    deployed model in eager mode.

    Attributes:
        deploys: Whether the model is deployed.
        runtime: One of `runtimes.RUNTIMES`.
    """

    deploys: bool
    runtime: str

    @classmethod
    def parse(cls, text: str) -> 'Mode':
        """Return the mode of a text.

        Raises:
            ValueError: The text is not in `MODES`.
        """
        if text not in MODES:
            raise ValueError(f"Unknown mode '{text}'. Use one of {', '.join(MODES)}.")
        first, _, runtime = text.partition('+')
        return cls(True, runtime or 'eager') if first == _DEPLOY else cls(False, first)

    def __str__(self) -> str:
        if not self.deploys:
            return self.runtime
        return _DEPLOY if self.runtime == 'eager' else f'{_DEPLOY}+{self.runtime}'


EAGER = Mode(False, 'eager')
MODES = tuple(str(Mode(deploys, runtime)) for deploys in (False, True) for runtime in RUNTIMES)
"""All modes as text."""


class Modes(NamedTuple):
    """How the two models of a cell run.

    As text: `BASELINE->SUBJECT` if the pair has modes of its own, otherwise the one mode of both.

    Attributes:
        baseline: Mode of the baseline and of the control.
        subject: Mode of the subject.
        of_pair: Whether the pair itself sets the modes; otherwise both models share one.
    """

    baseline: Mode
    subject: Mode
    of_pair: bool

    @classmethod
    def parse(cls, text: str) -> 'Modes':
        """Return the modes of a text.

        Raises:
            ValueError: A mode in the text is not in `MODES`.
        """
        baseline, arrow, subject = text.partition(_BETWEEN)
        return cls(Mode.parse(baseline), Mode.parse(subject if arrow else baseline), bool(arrow))

    def __str__(self) -> str:
        return f'{self.baseline}{_BETWEEN}{self.subject}' if self.of_pair else str(self.baseline)

    @property
    def different(self) -> tuple[Mode, ...]:
        """The modes of both models without repetition."""
        return tuple(dict.fromkeys((self.baseline, self.subject)))

    @property
    def compiles(self) -> bool:
        """Whether torch.compile runs, so that building a model again takes long."""
        return any(mode.runtime in COMPILED for mode in self.different)
