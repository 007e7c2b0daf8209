//! l2d-eval
