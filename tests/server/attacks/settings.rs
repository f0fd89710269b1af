//! `ALTER ROLE … SET` of every setting that the server lets a role give itself, at its extremes: of the tasks, that may be the end;
//! the bookkeeping is right in any case.

use std::time::Duration;

use super::Field;
use crate::harness::{run, scalar, wait_for};

/// A setting of its own for each role, so that all of them are logged in with at once.
struct Spoilt {
    role: String,
    setting: String,
}

/// What is worth trying for a setting of this type.
const VALUES: &str = "SELECT s.name, v.value FROM pg_settings AS s, LATERAL unnest(
        CASE s.vartype
            WHEN 'bool' THEN ARRAY['on', 'off']
            WHEN 'enum' THEN s.enumvals
            WHEN 'string' THEN ARRAY['', 'nowhere', 'pg_temp', 'Pacific/Chatham', 'LATIN1', '\"', 'a,b']
            ELSE ARRAY[s.min_val, s.max_val]
        END) AS v(value)
    WHERE s.context = 'user'
        -- these keep the role from logging in: see a_role_that_spoils_its_own_login_harms_nobody_else
        AND s.name <> 'local_preload_libraries'
        -- a second before and after each login
        AND s.name NOT LIKE '%auth_delay'
    ORDER BY s.name, v.value";

#[test]
fn no_setting_of_a_role_reaches_the_bookkeeping() {
    let mut field = Field::new(2);
    let mut spoilt = Vec::new();
    for row in field.client.query(VALUES, &[]).expect("pg_settings") {
        let (name, value): (String, String) = (row.get(0), row.get(1));
        let role = format!("spoilt{}", spoilt.len());
        run(&mut field.client, &format!("CREATE ROLE {role} LOGIN"));
        // as the role itself would
        let set = format!(
            "SET ROLE {role}; ALTER ROLE {role} SET {name} = '{}'",
            value.replace('\'', "''")
        );
        let was_set = field.client.batch_execute(&set).is_ok();
        run(&mut field.client, "RESET ROLE");
        if was_set {
            spoilt.push(Spoilt {
                role,
                setting: format!("{name} = {value}"),
            });
        } else {
            run(&mut field.client, &format!("DROP ROLE {role}"));
        }
    }
    assert!(spoilt.len() > 150, "{}", spoilt.len());
    run(
        &mut field.client,
        "CREATE ROLE spoilt; GRANT EXECUTE ON FUNCTION pg_background_queue_enqueue TO spoilt",
    );
    let all: Vec<&str> = spoilt.iter().map(|s| s.role.as_str()).collect();
    run(
        &mut field.client,
        &format!("GRANT spoilt TO {}", all.join(", ")),
    );
    // their own sessions do not have the settings, which are for new ones
    for Spoilt { role, setting } in &spoilt {
        let enqueue = "SELECT pg_background_queue_enqueue($1, $2)";
        run(&mut field.client, &format!("SET ROLE {role}"));
        for sql in ["SELECT 1", "SELECT 1; SELECT 1/0"] {
            field
                .client
                .execute(enqueue, &[&sql, setting])
                .expect("enqueued");
        }
        run(&mut field.client, "RESET ROLE");
    }
    wait_for("their tasks to end", Duration::from_secs(180), || {
        let open: i64 = scalar(
            &mut field.client,
            "SELECT count(*) FROM pg_background_tasks WHERE role_name LIKE 'spoilt%' AND closed_at IS NULL",
            &[],
        );
        (open == 0).then_some(())
    });
    let odd: Vec<String> = field
        .client
        .query(
            "SELECT concat_ws(' ', topic, '|', sql_statement, '|', state, attempt, interruptions, errors) FROM pg_background_tasks \
             WHERE role_name LIKE 'spoilt%' AND NOT ( \
                 attempt = 1 AND interruptions = 0 AND retry_count = 0 AND closed_at >= started_at \
                 AND CASE WHEN sql_statement = 'SELECT 1' THEN state = 'finished' \
                     ELSE state = 'failed' AND errors = '22012: division by zero' END \
                 OR topic ~ '^(statement|transaction)_timeout' AND errors LIKE '57014%')",
            &[],
        )
        .expect("the table")
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert!(odd.is_empty(), "{odd:#?}");
    field.survive();
    field.end();
}
