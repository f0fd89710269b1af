include!("transactions.inc");

pub fn snippet() -> error::Result<()> {
    let scope = xact::Scope::begin(xact::Snapshot::None)?;
    scope.commit()?;
    scope.commit()
}
