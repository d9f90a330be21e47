"""From a label table and a store to the cases of a task: who they are, and who trains on whom."""
