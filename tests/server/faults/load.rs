//! The tasks of the load, and the sessions that enqueue them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use fastrand::Rng;
use postgres::Client;

use super::ledger::{Ledger, Sent};
use super::pick;
use crate::harness::{Connector, run};

/// Kinds of tasks. Each task's text begins with a comment that has its number and its kind; each but [`Kind::Vacuum`] writes its
/// number into `effects` exactly once, in its last transaction, if it does not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Insert,
    /// Takes a while after its effect.
    Slow,
    /// Of the topic `one`, which runs alone; in an order that is defined.
    One,
    /// Of the topic `two`.
    Two,
    /// Of the topic `delayed`.
    Delayed,
    /// Of the topic `relaxed`, whose commits are lost in a crash.
    Relaxed,
    /// Not before a second from now.
    Later,
    Fails,
    /// Fails or not, and has retries.
    Flaky,
    /// Overflows its stack.
    Deep,
    /// Sorts more than it may write to temporary files.
    Greedy,
    Vacuum,
    /// A procedure that commits in the middle.
    Steps,
    /// Enqueues another task.
    Parent,
    /// What a [`Kind::Parent`] enqueues.
    Child,
    /// Is cancelled, most often.
    Cancelled,
}

/// What a task must come to, apart from what faults make of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    Finished,
    /// Failed, with this SQLSTATE.
    Failed(&'static str),
    Either,
}

/// How often each kind is chosen.
const MIX: &[(Kind, usize)] = &[
    (Kind::Insert, 12),
    (Kind::Slow, 8),
    (Kind::One, 8),
    (Kind::Two, 5),
    (Kind::Delayed, 1),
    (Kind::Relaxed, 6),
    (Kind::Later, 2),
    (Kind::Fails, 3),
    (Kind::Flaky, 3),
    (Kind::Deep, 1),
    (Kind::Greedy, 1),
    (Kind::Vacuum, 2),
    (Kind::Steps, 4),
    (Kind::Parent, 3),
    (Kind::Cancelled, 3),
];

impl Kind {
    pub const ALL: [Self; 16] = [
        Self::Insert,
        Self::Slow,
        Self::One,
        Self::Two,
        Self::Delayed,
        Self::Relaxed,
        Self::Later,
        Self::Fails,
        Self::Flaky,
        Self::Deep,
        Self::Greedy,
        Self::Vacuum,
        Self::Steps,
        Self::Parent,
        Self::Child,
        Self::Cancelled,
    ];

    pub fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    fn choose(random: &mut Rng) -> Self {
        pick(MIX, random)
    }

    pub fn expected(self) -> Expected {
        match self {
            Self::Fails => Expected::Failed("22012"),
            Self::Deep => Expected::Failed("54001"),
            Self::Greedy => Expected::Failed("53400"),
            Self::Flaky | Self::Cancelled => Expected::Either,
            _ => Expected::Finished,
        }
    }

    /// Whether a finished one has its number in `effects`.
    pub fn has_effect(self) -> bool {
        self != Self::Vacuum
    }

    pub fn topic(self) -> Option<&'static str> {
        match self {
            Self::One => Some("one"),
            Self::Two => Some("two"),
            Self::Delayed => Some("delayed"),
            Self::Relaxed => Some("relaxed"),
            _ => None,
        }
    }

    /// The text of task `marker`; a child of it has the next number.
    pub fn text(self, marker: i64, random: &mut Rng) -> String {
        let effect = format!("INSERT INTO public.effects VALUES ({marker})");
        let sleep = format!("SELECT pg_sleep({})", random.f64() * 0.06);
        let body = match self {
            Self::Insert | Self::Later | Self::Child | Self::Delayed | Self::Relaxed => effect,
            Self::Slow => format!("{effect}; {sleep}"),
            Self::One => format!("SELECT public.take_place('one', 1); {effect}; {sleep}"),
            Self::Two => format!("SELECT public.take_place('two', 2); {sleep}; {effect}"),
            Self::Fails => format!("{effect}; SELECT 1/0"),
            Self::Flaky => format!("{effect}; SELECT 1 / (nextval('public.flaky') % 2)"),
            Self::Deep => format!("{effect}; SELECT public.deep(1000000)"),
            Self::Greedy => format!(
                "{effect}; SELECT count(*) FROM (SELECT random() AS x FROM generate_series(1, 200000) ORDER BY x) AS s"
            ),
            Self::Vacuum => "VACUUM public.effects".to_owned(),
            Self::Steps => format!("CALL public.steps({marker}, {})", random.f64() * 0.03),
            Self::Parent => {
                let inner = Self::Child.text(marker + 1, random);
                format!("{effect}; SELECT pg_background_queue_enqueue('{inner}')")
            }
            Self::Cancelled => format!("{effect}; SELECT pg_sleep(5)"),
        };
        format!("/* {marker} {} */ {body}", self.name())
    }
}

/// What the tasks of a database need.
pub fn prepare_database(client: &mut Client) {
    run(
        client,
        "CREATE EXTENSION IF NOT EXISTS pg_background_queue; \
         GRANT EXECUTE ON FUNCTION pg_background_queue_enqueue TO PUBLIC; \
         CREATE TABLE public.effects (n bigint); \
         CREATE TABLE public.steps_begun (n bigint); \
         CREATE SEQUENCE public.flaky; \
         GRANT INSERT, SELECT ON public.effects, public.steps_begun TO PUBLIC; \
         GRANT USAGE ON SEQUENCE public.flaky TO PUBLIC; \
         CREATE FUNCTION public.take_place(topic text, places int) RETURNS void LANGUAGE plpgsql AS $$ BEGIN \
           FOR place IN 1 .. places LOOP \
             IF pg_try_advisory_xact_lock(hashtext(topic), place) THEN RETURN; END IF; \
           END LOOP; \
           RAISE EXCEPTION 'more than % tasks of topic % run', places, topic USING ERRCODE = 'PB001'; END $$; \
         CREATE FUNCTION public.deep(n int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN \
           IF n = 0 THEN RETURN 0; END IF; RETURN public.deep(n - 1) + 1; END $$; \
         CREATE PROCEDURE public.steps(marker bigint, seconds float8) LANGUAGE plpgsql AS $$ BEGIN \
           INSERT INTO public.steps_begun VALUES (marker); COMMIT; PERFORM pg_sleep(seconds); \
           INSERT INTO public.effects VALUES (marker); END $$",
    );
}

/// SQLSTATEs that a session of the load may see: the server ends, starts, is full, or the session was terminated.
fn is_excused(error: &postgres::Error) -> bool {
    match error.as_db_error() {
        None => true,
        Some(error) => error.code().code().starts_with("57P") || error.code().code() == "53300",
    }
}

/// A session that enqueues tasks.
pub struct Loader<'a> {
    pub connector: Connector,
    pub role: &'a str,
    pub database: &'a str,
    /// Its extension, its tables and itself may vanish at any moment.
    pub is_scratch: bool,
    pub ledger: &'a Ledger,
    pub random: Rng,
}

impl Loader<'_> {
    /// Enqueues until told to stop, through all ends of the server.
    pub fn run(mut self, stop: &AtomicBool) {
        let mut session = None;
        while !stop.load(Ordering::Relaxed) {
            // the load's pace, and a moment without a server or database
            thread::sleep(Duration::from_millis(self.random.u64(0..120)));
            let Some((client, durable)) = self.session(&mut session) else {
                continue;
            };
            if let Err(error) = self.one(client, *durable) {
                if !self.is_scratch && !is_excused(&error) {
                    self.ledger.complain(format!(
                        "{} in {} could not enqueue: {error:?}",
                        self.role, self.database
                    ));
                }
                session = None;
            }
        }
    }

    /// The session, a new one now and then. Half of them do not wait for their commits to be flushed.
    fn session<'s>(
        &mut self,
        session: &'s mut Option<(Client, bool)>,
    ) -> Option<&'s mut (Client, bool)> {
        if session.is_some() && self.random.u32(0..30) == 0 {
            *session = None;
        }
        if session.is_none() {
            let durable = self.random.bool();
            let mut client = self.connector.try_connect(self.role, self.database).ok()?;
            let commit = if durable { "on" } else { "off" };
            client
                .batch_execute(&format!("SET synchronous_commit = {commit}"))
                .ok()?;
            *session = Some((client, durable));
        }
        session.as_mut()
    }

    /// Enqueues a task.
    pub fn one(&mut self, client: &mut Client, durable: bool) -> Result<(), postgres::Error> {
        let kind = Kind::choose(&mut self.random);
        self.enqueue(client, durable, kind).map(drop)
    }

    /// Enqueues a task of this kind; returns its id.
    pub fn enqueue(
        &mut self,
        client: &mut Client,
        durable: bool,
        kind: Kind,
    ) -> Result<i64, postgres::Error> {
        let marker = self.ledger.marker();
        let text = kind.text(marker, &mut self.random);
        let priority =
            (kind != Kind::Cancelled && self.random.bool()).then(|| self.random.i32(90..110));
        let seconds = if kind == Kind::Later { 1.0 } else { 0.0 };
        let retries = (kind == Kind::Flaky).then_some(2);
        let row = client.query_one(
            "SELECT pg_background_queue_enqueue($1, $2, priority => $3, \
             run_at => CASE WHEN $4::float8 > 0 THEN now() + make_interval(secs => $4) END, retry_count => $5)",
            &[&text, &kind.topic(), &priority, &seconds, &retries],
        )?;
        let id = row.get(0);
        self.ledger.sent(Sent {
            database: self.database.to_owned(),
            id,
            marker,
            durable,
            acknowledged: SystemTime::now(),
        });
        if kind == Kind::Cancelled {
            // before it runs, while it runs
            thread::sleep(Duration::from_millis(self.random.u64(0..50)));
            client.query_one("SELECT pg_background_queue_cancel($1)", &[&id])?;
        }
        Ok(id)
    }
}
