include!("support.inc");

pub struct Outer(u32, Option<Box<u32>>);

pub fn snippet(value: Outer) -> bool {
    guard::guard(move || {
        let whole = &value;
        whole.0 == 1
    })
    .is_ok()
}
