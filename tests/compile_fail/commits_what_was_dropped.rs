include!("transactions.inc");

pub fn snippet() -> error::Result<()> {
    let transaction = xact::Transaction::begin(xact::Durability::Session)?;
    drop(transaction);
    transaction.commit()
}
