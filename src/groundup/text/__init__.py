"""Text itself: normalisation, duplicates, identifiers, tokenizers, prompts."""
