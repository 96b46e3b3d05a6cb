"""Where prediction meets measurement: what a record says about both."""
