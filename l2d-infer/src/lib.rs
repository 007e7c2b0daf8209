//! l2d-infer
