"""Published tables of measured times: how each row becomes a call of an operation family.

One module per table or kind of table holds `Table` objects (`table.py`), listed in `tables.py`. A
`Table` names its measured columns and has `batches`, a function from the rows (without any measured
column) to `Batch`es: the rows of one GPU, stack, family and variant, as one call whose quantities
are arrays. From that follow, for every table alike, `fit_rows` (which rows a calibration may see),
`samples` (what `lcprof.calibrate.fit` takes) and the scores of `benchmarks/score_external.py`.
"""
