//! l2d-core
