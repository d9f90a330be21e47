"""From how few patients on a score is said to say little."""

# Of test patients.
FEW_PATIENTS = 20
