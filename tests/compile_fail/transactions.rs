include!("transactions.inc");

// Each is used once; one inside the other, and in either order of dropping.
pub fn snippet() -> error::Result<()> {
    let transaction = xact::Transaction::begin(xact::Durability::Flushed)?;
    let scope = xact::Scope::begin(xact::Snapshot::Active)?;
    scope.commit()?;
    transaction.commit()
}
