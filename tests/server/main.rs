//! Integration tests: each starts its own PostgreSQL with the installed extension and works through
//! ordinary connections. `PG_CONFIG` names the server under test; root runs it as `PGBQ_TEST_USER`
//! (default `postgres`).

mod harness;

mod copies;
mod crash;
mod databases;
mod encodings;
mod isolation;
mod kit;
mod limits;
mod monitoring;
mod not_preloaded;
mod processes;
mod registry;
mod runs;
mod safe_layer;
mod security;
mod session;
mod single_tasks;
mod topics;
mod upgrade;
