include!("support.inc");

pub fn snippet(text: String) -> bool {
    guard::guard(move || text.is_empty()).is_ok()
}
