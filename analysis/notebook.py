"""What a notebook uses: `load` a study, then its numbers, figures and tables are one call each.

Figures and tables are imported when the first one is asked for: matplotlib takes as long as reading the results.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from analysis.results import LoadError, Results, read_results
from lnl.storage.places import Place
from lnl.storage.plan_record import CellRecord

if TYPE_CHECKING:
    from analysis.figures.base import Plot, Plots
    from analysis.tables.table import Table


class LoadedStudy(Results):
    """The results of one study with its figures and tables.

    `selection` is always the rule by which a trial's accuracy is read; without one it is the plan's own.
    """

    def plot(self, panel: str, selection: str | None = None) -> Plots:
        """Every figure of a panel by name, each with the frame that it draws and its caption."""
        from analysis.figures.panels import panel_figures

        curves = self.epochs(self.declared_panel(panel).curves)
        return panel_figures(self, panel, self.rule(selection), curves)

    def plot_contrasts(self, selection: str | None = None) -> Plot:
        """The declared contrasts: differences, intervals and verdicts."""
        from analysis.figures.contrasts import contrasts_figure

        return contrasts_figure(self.contrasts(selection))

    def plot_across(self, selection: str | None = None) -> Plots:
        """Figures over all settings, and of the factorials that the arms make up; none where there are neither."""
        from analysis.figures.aggregate import across_figures

        return across_figures(self, self.rule(selection))

    def plot_rules(self) -> Plot:
        """By how much each selection rule is ahead of the last epoch."""
        from analysis.figures.contrasts import rules_figure

        return rules_figure(self.table_rules().frame)

    def plot_search(
        self, searched_arm: str | None = None, setting: dict[str, Any] | None = None, selection: str | None = None
    ) -> Plots:
        """Figures of one search, such as `robmix_tpe`; without a name those in which all of them stand side by side.

        `setting`: where the arm was searched; the base where none is given, or the only setting there is.
        """
        from analysis.figures.search import overview_figures, search_figures

        suggestions = self.suggestions(selection)
        if searched_arm is None:
            return overview_figures(self, suggestions)
        return search_figures(self, self._search_cell(searched_arm, setting), suggestions)

    def plot_inside(self, arm: str | None = None) -> Plots:
        """Figures of what the methods believe of the labels, in the base setting: of one arm, or of all."""
        from analysis.figures.inside import inside_figures

        if arm is not None and arm not in self.plan.arms:
            raise LoadError(f"The study {self.name!r} has no arm {arm!r}: choose one of {', '.join(self.plan.arms)}.")
        return inside_figures(self, list(self.plan.arms) if arm is None else [arm])

    def plot_classes(self) -> Plots:
        """Of the test set at the last epoch, base setting: accuracy by class, calibration and confusion."""
        from analysis.figures.classes import class_figures

        return class_figures(self)

    def plot_cost(self) -> Plot:
        """Device-hours of each arm, by what became of its attempts."""
        from analysis.cost import read_ledger
        from analysis.figures.cost import cost_figure

        return cost_figure(read_ledger(self.root, self.name, self.preset, self.night))

    def plot_timings(self) -> Plot:
        """Mean seconds of an attempt of each arm, by phase."""
        from analysis.figures.timings import timings_figure
        from analysis.timings import read_timings

        return timings_figure(read_timings(self.root, self.name, self.preset, self.night))

    def table(self, panel: str, selection: str | None = None) -> Table:
        """Every arm of a panel in every setting, with its difference to the reference arm."""
        from analysis.tables.study import panel_table

        return panel_table(self, panel, self.rule(selection))

    def table_contrasts(self, selection: str | None = None) -> Table:
        """The declared contrasts with their verdicts."""
        from analysis.tables.study import contrasts_table

        return contrasts_table(self, self.rule(selection))

    def table_rules(self) -> Table:
        """Each arm of the base setting under every selection rule."""
        from analysis.tables.study import rules_table

        return rules_table(self)

    def table_search(self, selection: str | None = None) -> Table:
        """What each search spent, and what validation chose."""
        from analysis.tables.study import search_table

        rule = self.rule(selection)
        return search_table(self, self.suggestions(rule), rule)

    def table_suspects(self, arm: str) -> Table:
        """The given labels that an arm suspects most.  Raises LoadError where no trial of it has kept its beliefs."""
        from analysis.tables.classes import suspects_table

        if (table := suspects_table(self, arm)) is None:
            raise LoadError(f"No trial of arm {arm!r} has kept its beliefs: run the study with --keep beliefs.")
        return table

    def _search_cell(self, searched_arm: str, setting: dict[str, Any] | None) -> CellRecord:
        """The search of that name in that setting.  Raises LoadError where the plan has none."""
        from analysis.searches import search_name

        named = [cell for cell in self.cells if searched_arm in (search_name(cell), cell.searched_arm)]
        chosen = [cell for cell in named if cell.setting == (setting or {})]
        if not chosen and setting is None and len(named) == 1:
            chosen = named
        if not chosen:
            names = [search_name(cell) + f" in {cell.setting}" * bool(cell.setting) for cell in self.cells]
            wanted = f"{searched_arm!r}" + f" in {setting}" * (setting is not None)
            raise LoadError(
                f"The study {self.name!r} has no search {wanted}: choose one of {', '.join(names) or '(none)'}."
            )
        return chosen[0]


def load(root: str | Place, study: str, preset: str | None = None, night: str | None = None) -> LoadedStudy:
    """The newest plan of a study (of one preset, and one night, if given) and its results.

    `root`: a folder or s3://bucket/prefix.  Raises LoadError where it holds no such plan.  Warns of files that it
    cannot read, and of results that it leaves out because their data were replaced since.
    """
    return loaded(read_results(root, study, preset, night))


def loaded(results: Results) -> LoadedStudy:
    """The results with a figure or a table for each call."""
    return LoadedStudy(**{field.name: getattr(results, field.name) for field in fields(results)})
