"""Public data sets as their users get them: checked, and described to the rest by a config."""
