//! l2d-train
