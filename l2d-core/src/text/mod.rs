//! Tokens and prompts.
