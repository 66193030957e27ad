//! What the agent dials: resolve, TCP, TLS, pool.
