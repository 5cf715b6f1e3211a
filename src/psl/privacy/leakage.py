"""What an attack recovered at each cut: the record that `measure` returns, and the cut that a budget asks for."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from psl import html
from psl.errors import InfeasibleError, check_number, expected
from psl.records import Record

#: The scores of a reconstruction, in the order of the table.
SCORES = ("r2", "within_class_r2", "reidentified", "ssim", "psnr_db", "distance_correlation")


@dataclass(frozen=True, repr=False, eq=False)
class Leakage(Record):
    """What an attack reconstructed from the smashed data of every cut: at least this much leaks to this attacker.

    A low value is no proof of safety: another attacker, or more auxiliary images, may recover more.

    Args:
        cuts: numbers of the K cuts, ascending.
        names: their names.
        knows, attack, defence, sendings: as given to `measure`; the defence as text, "none" without one.
        n_auxiliary, n_private: images that the attacker has, and images that are attacked.
        scores: by name of a score, (K, seeds): "r2" (share of pixel variance recovered, the mean image has 0),
            "within_class_r2" (the class mean has 0), "reidentified" (share whose nearest image is their own, by chance
            1/n_private), "ssim", "psnr_db", and as a diagnostic "distance_correlation" of images and smashed data.
        baselines: the same of what needs no smashed data, by name: (seeds,) for every score. "mean image" is that of
            the auxiliary images, "class mean" their mean for the true label.

    Attributes:
        images, class_means, reconstructions: (k, …) some private images, the means of their classes, and (K, k, …)
            what the first seed's attack made of them. Not part of `to_dict` and `save`.
    """

    cuts: tuple[int, ...]
    names: tuple[str, ...]
    knows: str
    attack: str
    defence: str
    sendings: int
    n_auxiliary: int
    n_private: int
    scores: dict[str, np.ndarray]
    baselines: dict[str, dict[str, np.ndarray]]
    images: np.ndarray | None = field(default=None, init=False, compare=False, repr=False)
    class_means: np.ndarray | None = field(default=None, init=False, compare=False, repr=False)
    reconstructions: np.ndarray | None = field(default=None, init=False, compare=False, repr=False)

    def mean(self, score: str) -> np.ndarray:
        """Return (K,) means of a score over the seeds."""
        return np.asarray(self.scores[score], dtype=float).mean(axis=1)

    def at_or_behind(self, score: str) -> np.ndarray:
        """Return (K,) the largest mean of a score at the cut or any measured cut behind it.

        Whoever receives the smashed data of a cut and knows the layers behind it can compute those of the later cuts,
        and attack these. So for a fixed model, an attacker who knows its weights and no defence, the value never rises
        with depth, and a lower value at an earlier cut alone says that the attack was weak there. Across trainings, for
        other attackers or with noise this argument does not hold, and the maximum is a cautious rule.
        """
        return np.maximum.accumulate(self.mean(score)[::-1])[::-1]

    def floor(self, *, r2: float | None = None, reid: float | None = None) -> int:
        """Return the shallowest measured cut from which on this attack stays within a budget.

        Args:
            r2: most R², the share of pixel variance recovered; None for no limit.
            reid: most re-identification, 0..1; None for no limit.

        Raises:
            ScenarioError: no budget, or one out of range.
            InfeasibleError: no measured cut is within it; the message says what the deepest one reaches.
        """
        limits = {"r2": r2, "reidentified": reid}
        given = {name: limit for name, limit in limits.items() if limit is not None}
        if not given:
            raise expected("floor", "a budget", "none", "pass r2= or reid=")
        within = np.ones(len(self.cuts), dtype=bool)
        for name, limit in given.items():
            fix = "pass a share, such as 0.5"
            limit = check_number(name, limit, minimum=0 if name == "reidentified" else None, maximum=1, fix=fix)
            within &= self.at_or_behind(name) <= limit
        if not within.any():
            reached = {name: f"{self.at_or_behind(name)[-1]:.3g}" for name in given}
            want = "a cut with " + " and ".join(f"{name} ≤ {limit:g}" for name, limit in given.items())
            got = f"at the deepest, {self.names[-1]!r}, " + ", ".join(f"{n} = {v}" for n, v in reached.items())
            raise expected(
                "floor", want, got, "allow more, train with a defence, or keep the model whole", InfeasibleError
            )
        return self.cuts[int(np.argmax(within))]

    def to_frame(self) -> pd.DataFrame:
        """Return a row per cut and baseline: means of the scores over seeds, the spread (sd) of R² and of
        re-identification, and for cuts the largest R² and re-identification at or behind them.
        """
        rows = [
            self._row({name: values[k] for name, values in self.scores.items()}) | {"cut": cut, "name": self.names[k]}
            for k, cut in enumerate(self.cuts)
        ]
        frame = pd.DataFrame(rows)
        frame["r2_at_or_behind"] = self.at_or_behind("r2")
        frame["reidentified_at_or_behind"] = self.at_or_behind("reidentified")
        rest = pd.DataFrame([self._row(scores) | {"name": name} for name, scores in self.baselines.items()])
        frame = pd.concat([frame, rest], ignore_index=True)
        frame["cut"] = frame["cut"].astype("Int64")
        order = ["cut", "name", *SCORES, "r2_sd", "reidentified_sd", "r2_at_or_behind", "reidentified_at_or_behind"]
        return frame.reindex(columns=order)

    @staticmethod
    def _row(scores: Mapping[str, np.ndarray]) -> dict[str, float | str | int]:
        row: dict[str, float | str | int] = {name: float(np.mean(values)) for name, values in scores.items()}
        for name in ("r2", "reidentified"):
            values = np.asarray(scores[name], dtype=float)
            row[f"{name}_sd"] = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
        return row

    def __repr__(self) -> str:
        value = self.mean("r2")
        return (
            f"Leakage({self.attack}, knows {self.knows}, defence {self.defence}: R² {value[0]:.3f} at "
            f"{self.names[0]!r} to {value[-1]:.3f} at {self.names[-1]!r}; {self.n_auxiliary} auxiliary and "
            f"{self.n_private} private images)"
        )

    def _repr_html_(self) -> str:
        """Return what a notebook shows: R² with a bar and re-identification, of every cut and baseline."""
        frame = self.to_frame()
        rows = [
            [
                "" if pd.isna(row["cut"]) else str(row["cut"]),
                row["name"],
                row["r2"],
                html.Bar([html.share(max(row["r2"], 0.0), 1.0)]),
                row["within_class_r2"],
                html.percent(row["reidentified"]),
                row["ssim"],
            ]
            for row in frame.to_dict("records")
        ]
        header = ["cut", "", "R²", "", "R² within the class", "re-identified", "SSIM"]
        note = (
            f"At least this much leaks to this attacker on this data: {self.n_auxiliary} auxiliary images, "
            f"{self.n_private} attacked. By chance {1 / self.n_private:.2%} are re-identified."
        )
        title = f"Leakage to {self.attack}, knows {self.knows}, defence {self.defence}, {self.sendings} sending(s)"
        return html.table(title, header, rows, note=note)
