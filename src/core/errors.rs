//! What a task's column `errors` keeps.

/// The most bytes that are kept of all attempts.
pub const MOST_BYTES: usize = 64 * 1024;

/// The most bytes that are kept of one attempt.
pub const MOST_BYTES_OF_ONE: usize = 16 * 1024;

/// Stands where older text was cut off.
const CUT: &[u8] = b"[...]\n";

/// One attempt's error as text: SQLSTATE and message, then a line for each further field that is there.
pub fn entry(sqlstate: &str, message: &[u8], fields: &[(&str, Option<&[u8]>)]) -> Vec<u8> {
    let mut text = Vec::new();
    text.extend_from_slice(sqlstate.as_bytes());
    text.extend_from_slice(b": ");
    text.extend_from_slice(message);
    for (name, value) in fields {
        if let Some(value) = value {
            text.push(b'\n');
            text.extend_from_slice(name.as_bytes());
            text.extend_from_slice(b":  ");
            text.extend_from_slice(value);
        }
    }
    text
}

/// What was kept before with a new entry after it, whole lines of the oldest cut first. A line end is never part of
/// another character in the encodings that a database can have, so no character is cut in two.
pub fn append(kept: Option<&[u8]>, entry: &[u8], most: usize) -> Vec<u8> {
    let Some(kept) = kept.filter(|kept| !kept.is_empty()) else {
        return entry.to_vec();
    };
    if kept.len() + 1 + entry.len() <= most {
        return [kept, b"\n", entry].concat();
    }
    // the last lines of what was kept that fit, with the mark before them
    let room = most.saturating_sub(CUT.len() + entry.len() + 1);
    let start = kept.len().saturating_sub(room);
    let rest = match kept[start..].iter().position(|&byte| byte == b'\n') {
        Some(line_end) => &kept[start + line_end + 1..],
        None => &[],
    };
    if rest.is_empty() {
        [CUT, entry].concat()
    } else {
        [CUT, rest, b"\n", entry].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_entry_names_every_field_that_is_there() {
        let text = entry(
            "22012",
            b"division by zero",
            &[("DETAIL", None), ("HINT", Some(b"Do not."))],
        );
        assert_eq!(text, b"22012: division by zero\nHINT:  Do not.");
    }

    #[test]
    fn entries_are_kept_one_after_the_other() {
        let first = append(None, b"one", 100);
        assert_eq!(append(Some(&first), b"two", 100), b"one\ntwo");
    }

    #[test]
    fn the_oldest_line_goes_first() {
        let kept = append(Some(b"first\nsecond\nthird"), b"fourth", 20);
        assert_eq!(kept, b"[...]\nthird\nfourth");
    }

    proptest! {
        #[test]
        fn the_latest_error_is_kept_whatever_there_is(
            kept in prop::option::of(prop::collection::vec(prop::sample::select(b"ab\n\0\xff".to_vec()), 0..60)),
            new in prop::collection::vec(any::<u8>(), 0..60),
            most in 0usize..100,
        ) {
            let text = append(kept.as_deref(), &new, most);
            prop_assert!(text.ends_with(&new));
            prop_assert!(text.len() <= most.max(CUT.len() + new.len()));
        }

        #[test]
        fn never_longer_than_allowed_and_always_utf8(kept in "(.{0,40}\n){0,9}", new in ".{0,40}", more in 0usize..400) {
            let most = CUT.len() + new.len() + 1 + more;
            let text = append(Some(kept.as_bytes()), new.as_bytes(), most);
            prop_assert!(text.len() <= most);
            prop_assert!(text.ends_with(new.as_bytes()));
            prop_assert!(String::from_utf8(text).is_ok());
        }
    }
}
