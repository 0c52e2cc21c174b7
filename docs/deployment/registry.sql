-- Run once by the database's image: the registry beside the corrections.
CREATE DATABASE registry;
