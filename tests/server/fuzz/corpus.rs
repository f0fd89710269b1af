//! Every statement of the .sql files of a directory as a task, e.g. PostgreSQL's own:
//!
//!     PGBQ_CORPUS=…/src/test/regress/sql scripts/test-integration corpus --ignored --nocapture
//!
//! First each statement alone, then (what `BEGIN` and `COMMIT` enclose, or a few at random) several in one text.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::random::Random;
use super::{WHO, enqueue, internal_errors, server, wait_all_served};

#[test]
#[ignore = "takes half an hour, and a directory of .sql files in PGBQ_CORPUS"]
fn every_statement_of_a_corpus_as_a_task() {
    let directory = std::env::var("PGBQ_CORPUS").expect("PGBQ_CORPUS names a directory");
    let mut files: Vec<PathBuf> = fs::read_dir(&directory)
        .expect("the directory")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "sql"))
        .collect();
    files.sort();
    // PostgreSQL's make the tables here that the others use
    files.sort_by_key(|path| !path.ends_with("test_setup.sql"));
    let topics: Vec<String> = (0..4)
        .map(|n| format!("\"{n}\": {{\"max_parallel_running_tasks_count\": 1}}"))
        .collect();
    let server = server();
    server.set_and_reload(
        "pg_background_queue.topic_config",
        &format!("{{{}}}", topics.join(", ")),
    );
    let mut random = Random::new(1);
    let mut sessions = WHO.map(|(role, database)| server.connect(role, database));
    let mut count = 0;
    for pass in 0..2 {
        for (n, path) in files.iter().enumerate() {
            let bytes = fs::read(path).expect("a file");
            let statements = split(&String::from_utf8_lossy(&bytes));
            let texts = if pass == 0 {
                statements
            } else {
                groups(&statements, &mut random)
            };
            // in the order of the file
            let topic = if n == 0 {
                "0".to_owned()
            } else {
                (n % 4).to_string()
            };
            for client in &mut sessions {
                for text in &texts {
                    // what it warns of, rightly, is taken for a leak
                    if !text.trim().is_empty() && !text.contains("advisory_unlock") {
                        enqueue(client, &text.replace('\0', ""), &topic);
                        count += 1;
                    }
                }
            }
        }
    }
    eprintln!("{count} tasks from {} files", files.len());
    for (_, database) in WHO {
        let mut client = server.connect("postgres", database);
        wait_all_served(&mut client, Duration::from_secs(7200));
        for line in internal_errors(&mut client) {
            eprintln!("{database}: {line}");
        }
    }
}

/// Several statements in one text each time.
fn groups(statements: &[String], random: &mut Random) -> Vec<String> {
    let mut found = Vec::new();
    let mut group: Vec<&str> = Vec::new();
    let mut wanted = 2;
    let mut block = false;
    for statement in statements {
        let first = statement.trim_start().to_ascii_lowercase();
        let starts = first.starts_with("begin") || first.starts_with("start transaction");
        let ends = ["commit", "rollback;", "rollback", "abort", "end"]
            .iter()
            .any(|word| first.trim_end_matches(';').trim() == *word);
        if !starts && !ends {
            group.push(statement);
        }
        if starts || ends || (!block && group.len() >= wanted) {
            found.push(group.join(";\n"));
            group.clear();
            wanted = 2 + random.below(4);
        }
        block = (block || starts) && !ends;
    }
    found.push(group.join(";\n"));
    found
}

/// The statements of a file, without psql's commands and the data of COPY.
fn split(text: &str) -> Vec<String> {
    let mut statements = Vec::new();
    let mut current = String::new();
    // what must come before a semicolon counts again: a quote, or the tag of a dollar quote
    let mut until: Option<String> = None;
    let mut data = false;
    for line in text.lines() {
        if data {
            data = line.trim_end() != "\\.";
            continue;
        }
        if until.is_none() && line.starts_with('\\') {
            continue;
        }
        let mut rest = line;
        while let Some(next) = rest.chars().next() {
            if let Some(end) = &until {
                match rest.find(end.as_str()) {
                    Some(at) => {
                        current.push_str(&rest[..at + end.len()]);
                        rest = &rest[at + end.len()..];
                        until = None;
                    }
                    None => {
                        current.push_str(rest);
                        rest = "";
                    }
                }
                continue;
            }
            if rest.starts_with("--") {
                break;
            }
            if rest.starts_with("/*") {
                until = Some("*/".to_owned());
            } else if next == '\'' || next == '"' {
                until = Some(next.to_string());
            } else if next == '$'
                && let Some(end) = rest[1..].find('$')
                && rest[1..=end]
                    .chars()
                    .all(|c| c.is_alphanumeric() || c == '_')
                && !rest[1..].starts_with(|c: char| c.is_ascii_digit())
            {
                let tag = &rest[..end + 2];
                until = Some(tag.to_owned());
                current.push_str(tag);
                rest = &rest[tag.len()..];
                continue;
            } else if next == ';' {
                data = current.to_ascii_lowercase().contains("from stdin");
                statements.push(std::mem::take(&mut current));
                rest = &rest[1..];
                continue;
            }
            current.push(next);
            rest = &rest[next.len_utf8()..];
        }
        current.push('\n');
    }
    statements.push(current);
    statements
}

#[test]
fn a_file_is_split_at_its_semicolons() {
    let text = "SELECT ';', $$a;b$$; -- x;\n\\set y ;\nCOPY t FROM stdin;\n1;2\n\\.\nSELECT \"a;b\" /* ; */, $q$'$q$;\n";
    let statements = split(text);
    let statements: Vec<&str> = statements.iter().map(|s| s.trim()).collect();
    assert_eq!(
        statements,
        [
            "SELECT ';', $$a;b$$",
            "COPY t FROM stdin",
            "SELECT \"a;b\" /* ; */, $q$'$q$",
            ""
        ]
    );
}
