"""The stages of a recipe, one file each: artefacts in, one artefact out."""
