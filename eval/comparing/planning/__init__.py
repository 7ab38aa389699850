"""Components of a difference's error, what they would make of a larger design, and what settles an
open question."""
