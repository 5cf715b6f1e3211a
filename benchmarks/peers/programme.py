"""A mixed-integer linear programme, filled row by row, for HiGHS and for CP-SAT."""

import math
from dataclasses import dataclass, field

import numpy as np
from benchmarks.peers.common import stretch


@dataclass
class Programme:
    """Minimise cost · x subject to low ≤ A x ≤ high; x is 0 or 1, or (where `continuous`) any number from 0 up."""

    cost: list[float] = field(default_factory=list)
    continuous: list[int] = field(default_factory=list)
    rows: list[tuple[dict[int, float], float, float]] = field(default_factory=list)

    def column(self, cost: float, continuous: bool = False) -> int:
        """Add a variable and return its number."""
        if continuous:
            self.continuous.append(len(self.cost))
        self.cost.append(float(cost))
        return len(self.cost) - 1

    def row(self, terms: dict[int, float], low: float, high: float) -> None:
        """Add a constraint."""
        self.rows.append((terms, low, high))

    def highs(self, seconds: float) -> tuple[np.ndarray | None, float, str]:
        """Return (solution or None, bound, status) of HiGHS with one thread and no gap allowed."""
        import highspy

        solver = highspy.Highs()
        settings = {"output_flag": False, "log_to_console": False, "threads": 1, "mip_rel_gap": 0.0, "mip_abs_gap": 0.0}
        for name, value in (settings | {"time_limit": seconds * stretch()}).items():
            solver.setOptionValue(name, value)
        n = len(self.cost)
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = n, len(self.rows)
        lp.col_cost_ = np.array(self.cost)
        upper = np.ones(n)
        upper[self.continuous] = highspy.kHighsInf
        lp.col_lower_, lp.col_upper_ = np.zeros(n), upper
        lp.row_lower_ = np.array([max(low, -highspy.kHighsInf) for _, low, _ in self.rows])
        lp.row_upper_ = np.array([min(high, highspy.kHighsInf) for _, _, high in self.rows])
        kinds = [highspy.HighsVarType.kInteger] * n
        for k in self.continuous:
            kinds[k] = highspy.HighsVarType.kContinuous
        lp.integrality_ = kinds
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.start_ = np.cumsum([0, *(len(terms) for terms, _, _ in self.rows)])
        lp.a_matrix_.index_ = np.array([k for terms, _, _ in self.rows for k in terms])
        lp.a_matrix_.value_ = np.array([value for terms, _, _ in self.rows for value in terms.values()])
        solver.passModel(lp)
        solver.run()
        info, status = solver.getInfo(), solver.modelStatusToString(solver.getModelStatus())
        if info.primal_solution_status != 2:  # no feasible point
            return None, math.inf if "nfeasible" in status else info.mip_dual_bound, status
        return np.array(solver.getSolution().col_value), info.mip_dual_bound, status

    def cp_sat(self, seconds: float, fine: int = 10_000_000) -> tuple[np.ndarray | None, float, str]:
        """Return (solution or None, bound, status) of CP-SAT with one worker; numbers become whole `fine`-ths."""
        from ortools.sat.python import cp_model

        model, real = cp_model.CpModel(), set(self.continuous)
        n = range(len(self.cost))
        x = [model.new_int_var(0, 10_000 * fine, "") if k in real else model.new_bool_var("") for k in n]
        for terms, low, high in self.rows:
            whole = not real & set(terms)  # flows and packings: coefficients are whole already
            scale = 1 if whole else fine
            # A real variable counts in `fine`-ths itself.
            total = sum((round(v) if k in real or whole else round(v * scale)) * x[k] for k, v in terms.items())
            if math.isfinite(low) and low == high:
                model.add(total == round(low * scale))
                continue
            if math.isfinite(low):
                model.add(total >= round(low * scale))
            if math.isfinite(high):
                model.add(total <= round(high * scale))
        model.minimize(sum(round(c * (1 if k in real else fine)) * x[k] for k, c in enumerate(self.cost) if c))
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.max_time_in_seconds = seconds * stretch()
        status = solver.solve(model)
        name = solver.status_name(status)
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return None, math.inf if name == "INFEASIBLE" else 0.0, name
        values = np.array([solver.value(v) / (fine if k in real else 1) for k, v in enumerate(x)])
        return values, solver.best_objective_bound / fine, name
