"""The stages after training: tasks, answers, losses, judgments, scores, the comparison and the
page."""
