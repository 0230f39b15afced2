"""Plans: YAML and schema in, a checked and resolved `PlanDocument` out."""
