"""Steps: a plan compiled into an ordered, frozen list that is explained or executed."""
