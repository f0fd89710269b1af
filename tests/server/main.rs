//! Integration tests: each starts its own PostgreSQL with the installed extension and works through
//! ordinary connections. `PG_CONFIG` names the server under test; root runs it as `PGBQ_TEST_USER`
//! (default `postgres`).

mod harness;

mod attacks;
mod batches;
mod claims;
mod clock;
mod commits;
mod copies;
mod crash;
mod crash_points;
mod databases;
mod encodings;
mod extremes;
mod faults;
mod fuzz;
mod isolation;
mod kit;
mod lanes;
mod limits;
mod monitoring;
mod not_preloaded;
mod pg_cron;
mod processes;
mod promises;
mod registry;
mod runs;
mod safe_layer;
mod schedule;
mod security;
mod session;
mod single_tasks;
mod standby;
mod targets;
mod topics;
mod upgrade;
