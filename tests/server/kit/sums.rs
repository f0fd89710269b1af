//! A pool of short-lived workers, started by backends that collect what they have found.

use std::thread;

use super::prepare;
use crate::harness::{Server, scalar};
use crate::safe_layer::Fixture;

#[test]
fn a_backend_collects_what_its_workers_have_found() {
    // the postmaster gives the place of a worker free when it gets to it, so some more than three are in use
    let fixture = Fixture::start_with(Server::builder().conf("max_worker_processes", "40"));
    let mut client = prepare(&fixture);
    for (last, size) in [(10_i64, 10_i64), (1000, 100), (7, 1), (0, 1)] {
        let sum: i64 = scalar(&mut client, "SELECT pgbq_test_sum($1, $2)", &[&last, &size]);
        assert_eq!(sum, last * (last + 1) / 2);
    }
    // two backends at once do not get each other's
    let threads: Vec<_> = (0..2)
        .map(|i| {
            let mut client = fixture.client();
            thread::spawn(move || {
                for last in [10 + i, 20 + i, 30 + i] {
                    // there may be no slot left, which is told; no sum is wrong
                    match client.query_one("SELECT pgbq_test_sum($1, 10)", &[&last]) {
                        Ok(row) => assert_eq!(row.get::<_, i64>(0), last * (last + 1) / 2),
                        Err(error) => {
                            let error = error.as_db_error().expect("an error of the server");
                            assert_eq!(
                                error.message(),
                                "a worker could not be started: NoWorkerSlot"
                            );
                        }
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("a backend");
    }
}
