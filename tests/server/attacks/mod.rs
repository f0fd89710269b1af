//! Attackers: what a role may try that can enqueue, and must not get by it: more rights, a crash, others' tasks, others' time,
//! a forged row. `security.rs` has the ways to become somebody else; here is the rest.
//!
//! An [`Attack`] is a task's text and how it must end; [`Field::survive`] checks after all of them what must hold in any case.

mod calls;
mod commit;
mod errors;
mod giants;
mod leaks;
mod locks;
mod objects;
mod processes;
mod session;
mod settings;

use postgres::Client;

use crate::harness::{
    Server, create_role, enqueue, enqueue_topic, run, scalar, task, wait_closed, wait_state,
};

/// How an attack ends.
#[derive(Debug, Clone, Copy)]
enum End {
    /// It finishes: there is nothing wrong with it, or it is in vain.
    Finished,
    /// It fails with this SQLSTATE.
    Fails(&'static str),
    /// It fails with one of these: the server's versions differ.
    FailsEither(&'static str, &'static str),
    /// The one or the other, which depends on the server's version or on chance.
    Either(&'static str),
}
use End::{Either, Fails, FailsEither, Finished};

/// What it tries, its text, how it must end.
type Attack = (&'static str, &'static str, End);

/// What stands in the texts and topics of the victim's tasks.
const SECRET: &str = "secret-of-bob";

/// A server with an attacker and a victim, who has tasks in several states.
struct Field {
    server: Server,
    /// A superuser.
    client: Client,
    /// The attacker.
    alice: Client,
    /// The victim.
    bob: Client,
    /// The victim's tasks: finished, failed, pending, running.
    victims: Vec<i64>,
    /// All that stands in them.
    before: String,
    started: std::time::SystemTime,
}

impl Field {
    fn new(workers: u32) -> Self {
        Self::on(
            Server::builder()
                .conf("max_worker_processes", "16")
                .conf(
                    "pg_background_queue.max_parallel_running_tasks_count",
                    &(workers + 1).to_string(),
                )
                // most of what is done here are errors
                .conf("log_min_error_statement", "panic")
                .start(),
        )
    }

    fn on(server: Server) -> Self {
        let mut client = server.superuser();
        create_role(&mut client, "alice");
        create_role(&mut client, "bob");
        run(
            &mut client,
            "GRANT CREATE ON SCHEMA public TO alice; CREATE TABLE effects (what text); \
             GRANT SELECT, INSERT ON effects TO PUBLIC; SELECT pg_advisory_lock(77)",
        );
        let alice = server.connect("alice", "postgres");
        let mut bob = server.connect("bob", "postgres");
        let finished = enqueue_topic(&mut bob, &format!("SELECT '{SECRET}'"), SECRET);
        let failed = enqueue_topic(&mut bob, &format!("SELECT '{SECRET}'::int"), SECRET);
        let pending: i64 = scalar(
            &mut bob,
            "SELECT pg_background_queue_enqueue($1, $2, run_at => '2100-01-01')",
            &[&format!("SELECT '{SECRET}'"), &SECRET],
        );
        wait_state(&mut bob, finished, "finished");
        wait_closed(&mut bob, failed);
        let running = enqueue_topic(
            &mut bob,
            &format!("SELECT '{SECRET}', pg_advisory_xact_lock(77)"),
            SECRET,
        );
        wait_state(&mut bob, running, "running");
        let started = scalar(&mut client, "SELECT pg_postmaster_start_time()", &[]);
        let mut field = Self {
            server,
            client,
            alice,
            bob,
            victims: vec![finished, failed, pending, running],
            before: String::new(),
            started,
        };
        field.before = field.victims_rows();
        field
    }

    fn victims_rows(&mut self) -> String {
        scalar(
            &mut self.client,
            "SELECT string_agg(t::text, E'\\n' ORDER BY id) FROM pg_background_tasks AS t WHERE id = ANY ($1)",
            &[&self.victims],
        )
    }

    /// Runs attacks as tasks of alice's, each to its end, and checks how it ends.
    fn attack(&mut self, attacks: &[Attack]) {
        let ids: Vec<i64> = attacks
            .iter()
            .map(|(_, sql, _)| enqueue(&mut self.alice, sql))
            .collect();
        for (&(name, _, end), id) in attacks.iter().zip(ids) {
            let task = wait_closed(&mut self.client, id);
            let ended = match end {
                Finished => task.state == "finished",
                Fails(state) => task.state == "failed" && task.errors().starts_with(state),
                FailsEither(one, other) => {
                    let errors = task.errors();
                    task.state == "failed" && (errors.starts_with(one) || errors.starts_with(other))
                }
                Either(state) => task.state == "finished" || task.errors().starts_with(state),
            };
            assert!(
                ended,
                "{name}: {} instead of {end:?}; {}",
                task.state,
                task.errors()
            );
            assert_eq!(task.role_name.as_deref(), Some("alice"), "{name}");
            assert_eq!((task.attempt, task.retry_count), (1, 0), "{name}");
        }
        self.survive();
    }

    /// What must hold after any attack.
    fn survive(&mut self) {
        // nobody has more rights than before
        let superusers: String = scalar(
            &mut self.client,
            "SELECT string_agg(rolname, ' ') FROM pg_roles \
             WHERE rolsuper OR rolcreaterole OR rolreplication OR rolbypassrls",
            &[],
        );
        assert_eq!(superusers, "postgres");
        // the victim's tasks are as they were; the one that runs still runs
        let now = self.victims_rows();
        assert_eq!(now, self.before);
        // it was the same server all the time, and it serves both
        for who in ["alice", "bob"] {
            let session = if who == "alice" {
                &mut self.alice
            } else {
                &mut self.bob
            };
            let sql = format!("SELECT 1/(session_user = '{who}' AND current_user = '{who}')::int");
            let id: i64 = scalar(
                session,
                "SELECT public.pg_background_queue_enqueue($1)",
                &[&sql],
            );
            wait_state(&mut self.client, id, "finished");
        }
        let started: std::time::SystemTime =
            scalar(&mut self.client, "SELECT pg_postmaster_start_time()", &[]);
        assert_eq!(started, self.started);
        let running: i64 = scalar(
            &mut self.client,
            "SELECT count(*) FROM pg_background_tasks WHERE state = 'running'",
            &[],
        );
        assert_eq!(running, 1, "the victim's");
    }

    /// Lets the victim's task go: it has finished, by its first attempt.
    fn end(mut self) {
        run(&mut self.client, "SELECT pg_advisory_unlock(77)");
        let running = self.victims[3];
        wait_state(&mut self.client, running, "finished");
        assert_eq!(task(&mut self.client, running).attempt, 1);
    }
}
