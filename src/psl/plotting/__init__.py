"""Figures: one style, one way to save them, and the drawings that notebooks share."""

from psl.plotting.cell import plot_assignment, plot_cell
from psl.plotting.charts import plain_ticks, plot_curves, plot_over_bound, plot_parts, plot_points, plot_terms
from psl.plotting.distributed import plot_measured_against_predicted, plot_processes, plot_two_gantts
from psl.plotting.edgesplit import (
    plot_alternation,
    plot_deadline,
    plot_device_round,
    plot_fixed_point,
    plot_who_gets_which_cut,
)
from psl.plotting.edgesplit_studies import (
    plot_excess,
    plot_headline,
    plot_round_ratios,
    plot_speedup,
    plot_stragglers,
)
from psl.plotting.epsl import plot_certificate, plot_rounds_by_cut
from psl.plotting.gantt import GANTT_LOOKS, mark_phases, phases, plot_gantt
from psl.plotting.micro_batches import plot_round_by_micro_batches, plot_rounds_and_bounds
from psl.plotting.network import plot_network, plot_state_graph, state_graph
from psl.plotting.pipeline import (
    plot_closed_form,
    plot_gantts,
    plot_micro_batch_choice,
    plot_micro_batch_curve,
    plot_micro_batch_training,
    plot_over_optimum,
    plot_pareto_walk,
    plot_plan_sweeps,
)
from psl.plotting.privacy import (
    plot_budget,
    plot_defences,
    plot_estimates,
    plot_knowledge,
    plot_label_leakage,
    plot_leakage_by_cut,
    plot_reconstructions,
)
from psl.plotting.profiles import (
    cut_candidates,
    device_shares,
    plot_counted_and_measured,
    plot_cut_costs,
    plot_cut_explorer,
)
from psl.plotting.results import VERDICTS, markdown_table, save_claim, save_results
from psl.plotting.sliders import explore
from psl.plotting.split_learning import MESSAGES, plot_split_learning
from psl.plotting.style import COLUMN, INK, LOOKS, PAGE, bar_looks, look, save_figure, set_up, use_style
from psl.plotting.training import (
    new_panels,
    plot_accuracy,
    plot_ratios,
    plot_readings,
    plot_slots,
    plot_target_times,
    shared_legend,
)

__all__ = [
    "COLUMN",
    "GANTT_LOOKS",
    "INK",
    "LOOKS",
    "MESSAGES",
    "PAGE",
    "VERDICTS",
    "bar_looks",
    "cut_candidates",
    "device_shares",
    "explore",
    "look",
    "mark_phases",
    "markdown_table",
    "new_panels",
    "phases",
    "plain_ticks",
    "plot_accuracy",
    "plot_alternation",
    "plot_assignment",
    "plot_budget",
    "plot_cell",
    "plot_certificate",
    "plot_closed_form",
    "plot_counted_and_measured",
    "plot_curves",
    "plot_cut_costs",
    "plot_cut_explorer",
    "plot_deadline",
    "plot_defences",
    "plot_device_round",
    "plot_estimates",
    "plot_excess",
    "plot_fixed_point",
    "plot_gantt",
    "plot_gantts",
    "plot_headline",
    "plot_knowledge",
    "plot_label_leakage",
    "plot_leakage_by_cut",
    "plot_measured_against_predicted",
    "plot_micro_batch_choice",
    "plot_micro_batch_curve",
    "plot_micro_batch_training",
    "plot_network",
    "plot_over_bound",
    "plot_over_optimum",
    "plot_pareto_walk",
    "plot_parts",
    "plot_plan_sweeps",
    "plot_points",
    "plot_processes",
    "plot_ratios",
    "plot_readings",
    "plot_reconstructions",
    "plot_round_by_micro_batches",
    "plot_round_ratios",
    "plot_rounds_and_bounds",
    "plot_rounds_by_cut",
    "plot_slots",
    "plot_speedup",
    "plot_split_learning",
    "plot_state_graph",
    "plot_stragglers",
    "plot_target_times",
    "plot_terms",
    "plot_two_gantts",
    "plot_who_gets_which_cut",
    "save_claim",
    "save_figure",
    "save_results",
    "set_up",
    "shared_legend",
    "state_graph",
    "use_style",
]
