include!("transactions.inc");

pub fn snippet() -> error::Result<()> {
    let transaction = xact::Transaction::begin(xact::Durability::Session)?;
    std::thread::scope(|threads| {
        threads.spawn(move || transaction.commit().is_ok());
    });
    Ok(())
}
