include!("support.inc");

pub fn snippet(text: &str) -> bool {
    guard::guard(|| text.to_owned()).is_ok()
}
