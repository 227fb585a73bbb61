//! x
#[derive(Clone,Debug)] pub struct ReplayConfig; pub async fn run(_:ReplayConfig,_:engine::source::SourceContext){} pub fn preflight(_:&ReplayConfig)->Result<(),engine::source::SourceError>{Ok(())}
