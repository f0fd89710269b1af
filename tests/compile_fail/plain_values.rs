include!("support.inc");

// By reference, by pointer and by value: nothing that needs Drop moves in or out.
pub fn snippet(text: &String, number: u32) -> bool {
    let pointer = text.as_ptr();
    guard::guard(move || (text.len(), pointer, number)).is_ok()
}
