"""One configuration of a race: what its runs are shortened by, its runs on a rung, and what is known of them."""

import json
from dataclasses import dataclass, field

from harness.results import commands
from harness.suites import Plain
from harness.sweeps import dropping
from harness.sweeps.cells import Size, changed, examples_of, make_cell


def learns(cell, timed=False):
    """What a cell's run is shortened by, as dropping.whole_of takes it. timed: what may take minutes has a short run
    that tells how long.
    """
    budget = cell.args.get("label_budget") or cell.args.get("max_train_samples")
    if cell.script == "probe.py" and not cell.args.get("tune"):
        slow = cell.args["features"] == "lm" and (timed or not budget)
        return "labels" if slow else "at_once"  # else it takes seconds
    searched = cell.script == "prompt_eval.py" and cell.args.get("label_budget") and cell.args["k_shots"] is None
    if searched or cell.script == "context_distill.py":
        return "labels"
    trained = "epochs" in commands.actions(cell.script) or cell.args.get("tune") == "contrastive"
    return "steps" if trained else "nothing"


@dataclass
class Racer:
    """One configuration: its cells differ in nothing but their seeds."""

    name: str
    cells: list
    size: Size
    learns: str  # of dropping.whole_of
    whole: dict  # {flag: number}, of dropping.whole_of
    gain: dropping.Gain = dropping.NONE  # from its rung to its whole run
    fewer: dict = field(default_factory=dict)  # {flag: number} of its rung
    on_rung: list = field(default_factory=list)  # its cells there
    rows: list = field(default_factory=list)  # of the last rung
    runs: list = field(default_factory=list)  # [rungs] of the run ids of its rows there
    dropped: str | None = None  # why
    behind: dropping.Loser | None = None  # where it is for that
    ran: bool = False  # whether its whole runs were made in this race

    def enter(self, fewer, args, gains=None):
        """Make its cells of a rung; they are its own where these are that small already, and those of the rung before
        where no more would be trained. fewer: {flag: number}; args: with the results CSV of the rungs; gains: the
        Rung's.
        """
        before, now = ({k: v for k, v in some.items() if k != dropping.EXAMPLES} for some in (self.fewer, fewer))
        if before == now and now:
            return
        self.fewer, changes = fewer, {name: Plain(n) for name, n in fewer.items()}
        if "max_steps" in changes:
            changes["epochs"] = Plain("")  # which the steps replace
        made = [make_cell(c.name, c.script, changed(set(), changes, c.script, c.settings), args) for c in self.cells]
        self.on_rung = made if changes else self.cells
        self.gain = gains[self.learns] if gains and changes else dropping.NONE

    @property
    def is_whole(self):
        return self.on_rung == self.cells

    @property
    def failed(self):
        return any(row is None or row["status"] not in ("ok", "degenerate") for row in self.rows)

    @property
    def cannot_run(self):
        """Whether its whole run fails, too: it was whole, or ran out of memory with less."""
        return self.failed and (self.is_whole or any(row and row["status"] == "oom" for row in self.rows))

    @property
    def data(self):
        """What its data are, and its metric."""
        return json.dumps([examples_of(self.cells[0]), self.rows[0]["metric"]], sort_keys=True)

    def whole_seconds(self):
        """That its whole runs will take, by its rows of the last rung; 0 where these are whole."""
        return 0.0 if self.is_whole else sum(dropping.whole_seconds(row, self.whole) for row in self.rows if row)
