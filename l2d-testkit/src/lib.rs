//! l2d-testkit
