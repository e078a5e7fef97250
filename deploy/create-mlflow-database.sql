CREATE DATABASE mlflow; -- beside Dagster's: both have a table named runs
