"""What a reader of a prediction study asks, and where a run answers it: the topics of TRIPOD+AI and PROBAST+AI.

After Collins et al., BMJ 2024 (TRIPOD+AI) and Moons et al., BMJ 2025 (PROBAST+AI). The words are ours, a topic may
stand for several items, and the publications are what counts.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """One topic: ``topic`` in our words, ``answered`` by a part of the report or '' where it stays open."""

    part: str
    topic: str
    answered: str = ""


ITEMS = (
    Item("Title and abstract", "that the study develops or evaluates a prediction model, for whom and of what"),
    Item("Introduction", "the clinical question, who would use the model and what is used today"),
    Item("Introduction", "known differences in care or outcome between groups of people"),
    Item("Introduction", "whether the model is developed, evaluated, or both", "Predictions; Bundles"),
    Item("Data", "source of the data, and whether training and evaluation data are apart", "Provenance; Predictions"),
    Item("Data", "when patients were seen and how long they were followed", "Cohort (follow-up); dates stay open"),
    Item("Participants", "setting and hospitals", "Sites"),
    Item("Participants", "who is included and who is left out, and why", "Cohort (flow)"),
    Item("Participants", "treatments that patients received"),
    Item("Data preparation", "how values are cleaned, scaled and recognised", "Settings; Steps"),
    Item("Outcome", "definition and length of follow-up", "Cohort (follow-up); the definition stays open"),
    Item("Outcome", "who assessed it, and whether they knew the predictors"),
    Item("Predictors", "how they are chosen and measured", "Settings (omics); Bundles (features)"),
    Item("Sample size", "how the numbers were arrived at", "Cohort (counts); the reason stays open"),
    Item("Missing data", "how much is missing and what stands for it", "Cohort (flow); Settings (omics)"),
    Item("Analysis", "type of model, its building and its internal validation", "Settings (survival); Predictions"),
    Item("Analysis", "choice of hyperparameters", "Settings; inner folds of the honest protocol"),
    Item("Analysis", "measures of performance", "Predictions"),
    Item("Analysis", "differences between hospitals and groups of people", "Subgroups; Sites"),
    Item("Class imbalance", "whether deaths were drawn more often", "Settings (comparisons.balanced_sampling)"),
    Item("Fairness", "what was done about unequal performance", "Subgroups; what was done stays open"),
    Item("Model output", "what it gives, and thresholds of groups", "Bundles"),
    Item("Training and evaluation", "differences between the two sets of patients", "Bundles (validation)"),
    Item("Ethics", "approval and consent"),
    Item("Open science", "funding, conflicts of interest, protocol, registration"),
    Item("Open science", "availability of data and code", "Provenance; access to the data stays open"),
    Item("Patients and public", "how they took part in the study"),
    Item("Results", "characteristics of the patients", "Cohort"),
    Item("Results", "numbers of patients and deaths in each analysis", "Predictions; Subgroups"),
    Item("Results", "the whole model, so that others can apply it", "Bundles"),
    Item("Results", "performance with intervals, also in subgroups", "Predictions; Subgroups"),
    Item("Discussion", "meaning, limits, and what use in care would need"),
    Item("Bias (PROBAST+AI)", "are these patients those it is meant for?", "Cohort (flow); judgement stays open"),
    Item("Bias (PROBAST+AI)", "are predictors known at the time of prediction, and measured alike?"),
    Item("Bias (PROBAST+AI)", "is the outcome kept out of the predictors?", "Steps (omics)"),
    Item("Bias (PROBAST+AI)", "enough deaths, nothing learnt from test patients?", "Predictions"),
)  # fmt: skip
