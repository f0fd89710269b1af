//! The registry of workers in shared memory, against the processes that are really there.

use crate::harness::{run, scalar};
use crate::safe_layer::Fixture;

#[test]
fn calibrate_repairs_a_damaged_registry() {
    let fixture = Fixture::start();
    let mut client = fixture.server.superuser();
    // of the test build, which is not the one that CREATE EXTENSION finds
    for function in ["active", "calibrate"] {
        run(
            &mut client,
            &format!(
                "CREATE FUNCTION {function}() RETURNS int LANGUAGE c \
                 AS 'pg_background_queue', 'pg_background_queue_{function}_workers_count'"
            ),
        );
    }
    assert_eq!(scalar::<i32>(&mut client, "SELECT active()", &[]), 0);
    for reused in [0, 0, 1] {
        // 1: the process id is that of another by now
        let sql = format!("SELECT pgbq_test_damage_registry({reused})");
        run(&mut client, &sql);
    }
    assert_eq!(scalar::<i32>(&mut client, "SELECT active()", &[]), 3);
    assert_eq!(scalar::<i32>(&mut client, "SELECT calibrate()", &[]), 0);
    assert_eq!(scalar::<i32>(&mut client, "SELECT active()", &[]), 0);
}
