"""The teachers: relevance learns the policy's grades, engagement learns what members do."""
