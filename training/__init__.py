"""Everything that makes a checkpoint: phantoms, questions, objectives, stages and evaluation."""
